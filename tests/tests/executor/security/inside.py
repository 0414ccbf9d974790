"""What code in a sandbox can do to what is beside it. Prints JSON: for each attempt that a sandbox
must not succeed with, what came of it, and for each kind one that it may, as a control.

Arguments: addresses of executors; then, after --, tokens that were used."""

import ctypes
import errno
import http.client
import json
import os
import socket
import subprocess
import sys

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
libc.ptrace.restype = ctypes.c_long
PTRACE_ATTACH, PTRACE_DETACH = 16, 17
PIDFD_OPEN, PIDFD_GETFD, PROCESS_VM_READV = 434, 438, 310
SECRETS = ["environ", "auxv", "maps", "syscall", "personality", "stack", "pagemap"]
LINKS = ["root", "cwd", "exe", "ns/mnt", "ns/net"]


def word(error):
    return errno.errorcode.get(error, str(error))


def attempt(act):
    try:
        act()
        return "DONE"
    except OSError as error:
        return word(error.errno)


def read(path, mode="rb"):
    with open(path, mode) as file:
        file.read(1)


def ptrace(pid):
    ctypes.set_errno(0)
    if libc.ptrace(PTRACE_ATTACH, pid, None, None) != 0:
        raise OSError(ctypes.get_errno(), "ptrace")
    os.waitpid(pid, 0x40000000)
    libc.ptrace(PTRACE_DETACH, pid, None, None)


def take_descriptor(pid):
    pidfd = libc.syscall(PIDFD_OPEN, pid, 0)
    if pidfd < 0:
        raise OSError(ctypes.get_errno(), "pidfd_open")
    taken = [libc.syscall(PIDFD_GETFD, pidfd, number, 0) for number in range(16)]
    if max(taken) < 0:
        raise OSError(ctypes.get_errno(), "pidfd_getfd")


def read_memory(pid):
    class Vector(ctypes.Structure):
        _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]

    buffer = ctypes.create_string_buffer(8)
    near = Vector(ctypes.addressof(buffer), 8)
    # Of a child of this process, what is here is there too.
    far = Vector(ctypes.addressof(buffer), 8)
    ctypes.set_errno(0)
    if libc.syscall(PROCESS_VM_READV, pid, ctypes.byref(near), 1, ctypes.byref(far), 1, 0) < 0:
        # An address that is not mapped was looked at: access is not what is missing.
        if ctypes.get_errno() != errno.EFAULT:
            raise OSError(ctypes.get_errno(), "process_vm_readv")


def open_descriptors(pid, flags):
    opened, last = 0, errno.EACCES
    for number in list(os.listdir(f"/proc/{pid}/fd")) or ["0"]:
        try:
            os.close(os.open(f"/proc/{pid}/fd/{number}", flags))
            opened += 1
        except OSError as error:
            last = error.errno
    if not opened:
        raise OSError(last, "open")


def attempts(pid):
    results = {name: attempt(lambda: read(f"/proc/{pid}/{name}")) for name in SECRETS}
    for name in LINKS:
        results[name] = attempt(lambda: os.readlink(f"/proc/{pid}/{name}"))
    results["files"] = attempt(lambda: os.listdir(f"/proc/{pid}/root/"))
    results["map_files"] = attempt(lambda: os.listdir(f"/proc/{pid}/map_files"))
    results["read program"] = attempt(lambda: read(f"/proc/{pid}/exe"))
    results["write program"] = attempt(lambda: read(f"/proc/{pid}/exe", "r+b"))
    # Nothing is mapped where they begin.
    for name, flags in ("open memory", os.O_RDONLY), ("open memory to write", os.O_RDWR):
        results[name] = attempt(lambda: os.close(os.open(f"/proc/{pid}/mem", flags)))
    results["read descriptors"] = attempt(lambda: open_descriptors(pid, os.O_RDONLY))
    results["write descriptors"] = attempt(lambda: open_descriptors(pid, os.O_WRONLY))
    results["take descriptor"] = attempt(lambda: take_descriptor(pid))
    results["read memory"] = attempt(lambda: read_memory(pid))
    results["trace"] = attempt(lambda: ptrace(pid))
    return results


def others():
    """Executor and agents, by what everybody may read; and descriptors of a memfd, if any."""
    found, memory_files = {}, []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/cmdline", "rb") as file:
                program = file.read().split(b"\0")[0].decode()
        except OSError:
            continue
        if os.path.basename(program) in ("task-executor", "task-executor-agent"):
            found[int(name)] = os.path.basename(program)
        try:
            for number in os.listdir(f"/proc/{name}/fd"):
                target = os.readlink(f"/proc/{name}/fd/{number}")
                if "memfd:" in target:
                    memory_files.append([int(name), target])
        except OSError:
            continue
    return found, memory_files


def sockets():
    """Every Unix socket with a name in this network, and those that can be connected to."""
    control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    control.bind("\0control")
    control.listen()
    with open("/proc/net/unix") as file:
        names = {line.split()[7] for line in file.readlines()[1:] if len(line.split()) > 7}
    connected = []
    for name in sorted(names):
        address = "\0" + name[1:] if name.startswith("@") else name
        for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM):
            with socket.socket(socket.AF_UNIX, kind) as client:
                client.settimeout(2)
                if attempt(lambda: client.connect(address)) == "DONE":
                    connected.append(name)
    return connected


def request(address, token):
    task = [{"name": "forged", "process": {"command": ["touch", "/tmp/forged-inside"]}}]
    connection = http.client.HTTPConnection(address, 5758, timeout=20)
    headers = {"Content-Type": "application/json"}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    connection.request("POST", "/setTasks", json.dumps(task), headers)
    return connection.getresponse().status


def garbage(address):
    with socket.create_connection((address, 5758), timeout=20) as connection:
        connection.sendall(os.urandom(4096) + b"\r\n\r\n")
        answer = connection.recv(64)
        return answer.split(b" ")[1].decode() if answer.startswith(b"HTTP/1.1 ") else answer.hex()


def main():
    split = sys.argv.index("--")
    addresses, tokens = sys.argv[1:split], sys.argv[split + 1 :]
    found, memory_files = others()
    child = subprocess.Popen(["sleep", "60"])
    control = attempts(child.pid)
    child.kill()
    child.wait()
    print(
        json.dumps(
            {
                "processes": {f"{name} {pid}": attempts(pid) for pid, name in found.items()},
                "control": control,
                "signal": {
                    f"{name} {pid}": attempt(lambda: os.kill(pid, 0)) for pid, name in found.items()
                },
                "memory files": memory_files,
                "sockets": sockets(),
                "requests": [
                    [address, request(address, token)]
                    for address in addresses
                    for token in [None, "", "garbage", *tokens]
                ],
                "garbage": [garbage(address) for address in addresses],
            }
        )
    )


main()
