"""Puts a process in the place of the agent: the sandbox's own program, executed from a file in memory
of the right name, with the right arguments, a control socket at the right descriptor, and a parent
outside of the container. Arguments: what it does when an executor speaks to it, and a process id to
lie about.

What executor and agent say to each other is in the executor's agent/protocol.rs."""

import ctypes
import os
import shutil
import signal
import sys

CLONE_PARENT = 0x8000

INNER = r'''
import array, fcntl, os, socket, struct, threading, time

mode, victim = open("/tmp/fake-mode").read().split()

near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
high = [fcntl.fcntl(end.fileno(), fcntl.F_DUPFD, 16) for end in (near, far)]
near.detach(), far.detach()
os.dup2(high[0], 3)
os.dup2(high[1], 4)
control = socket.socket(fileno=3)


def frame(payload):
    return struct.pack("<I", len(payload)) + payload


def varint(number):
    text = b""
    while number > 127:
        text += bytes([number & 127 | 128])
        number >>= 7
    return text + bytes([number])


def running(key, pid, output):
    # No note, runs since 1 ms, not stopped, not gone.
    return frame(b"\1" + varint(key) + b"\0\1" + varint(pid * 2) + b"\1\0\0" + bytes([output]))


HELLO, SNAPSHOT_END, PROBE = frame(b"\0\1"), frame(b"\2"), frame(b"\3\1\0")


def orders(connection):
    """Orders as they come, each as its bytes."""
    buffer = b""
    while True:
        data = connection.recv(65536)
        if not data:
            return
        buffer += data
        while len(buffer) >= 4 and len(buffer) >= 4 + struct.unpack("<I", buffer[:4])[0]:
            length = struct.unpack("<I", buffer[:4])[0]
            yield buffer[4 : 4 + length]
            buffer = buffer[4 + length :]


def speak(connection):
    if mode == "garbage":
        while True:
            connection.sendall(os.urandom(65536))
    if mode == "huge":
        connection.sendall(b"\xff\xff\xff\xff")
        while True:
            connection.sendall(bytes(65536))
    if mode == "largest":
        # As long as a frame may be, and never a whole one.
        connection.sendall(struct.pack("<I", 8 << 20) + bytes((8 << 20) - 1))
    if mode in ("lists", "proofs", "greetings"):
        connection.sendall(HELLO)
        again = {"lists": SNAPSHOT_END, "proofs": PROBE, "greetings": frame(b"\0\7")}[mode]
        connection.sendall(again * 3)
        while True:
            connection.sendall(again * 1000)
    if mode in ("reports", "reports-deaf"):
        # Of a task that nobody ordered, without end; each is answered by an order to stop it.
        connection.sendall(HELLO + SNAPSHOT_END)
        if mode == "reports":
            threading.Thread(target=lambda: list(orders(connection)), daemon=True).start()
        while True:
            connection.sendall(running(1 << 40, 1, 0) * 1000)
    if mode == "descriptors":
        connection.sendall(HELLO)
        endless = os.open("/dev/zero", os.O_RDONLY)
        for key in range(3000):
            text = running(key, 1, 1)
            rights = array.array("i", [endless, endless])
            connection.sendmsg([text], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        connection.sendall(SNAPSHOT_END)
    if mode == "liar":
        connection.sendall(HELLO + SNAPSHOT_END)
        for order in orders(connection):
            if order[0] == 1:
                key, shift = 0, 0
                for byte in order[1:]:
                    key |= (byte & 127) << shift
                    shift += 7
                    if byte < 128:
                        break
                connection.sendall(running(key, int(victim), 0))
            if order[0] == 5:
                connection.sendall(frame(b"\3" + order[1:] + b"\0"))
            if order[0] == 2:
                # Asked to stop: the place is empty then.
                os._exit(0)
    # Else silent.
    time.sleep(1000)


open("/tmp/fake-ready", "w").close()
connections = []
while True:
    data, ancillary, _, _ = control.recvmsg(64, 64)
    for level, kind, rights in ancillary:
        descriptors = array.array("i", rights)
        connection = socket.socket(fileno=descriptors[0])
        connections.append(connection)
        connection.setblocking(True)
        open("/tmp/fake-heard", "a").write("x")
        try:
            speak(connection)
        except OSError:
            pass
'''

mode, victim = sys.argv[1:]
with open("/tmp/fake-mode", "w") as file:
    file.write(f"{mode} {victim}")
with open("/tmp/injected", "w") as file:
    file.write(INNER)
program = os.memfd_create("task-executor-agent")
with open(os.path.realpath(sys.executable), "rb") as source, os.fdopen(os.dup(program), "wb") as copy:
    shutil.copyfileobj(source, copy)
# A sibling of this process: its parent is that of the container's first process, as an agent's is.
clone = {"x86_64": 56, "aarch64": 220}[os.uname().machine]
if ctypes.PyDLL(None).syscall(clone, CLONE_PARENT | signal.SIGCHLD, 0, 0, 0, 0):
    os._exit(0)
os.setsid()
os.chdir("/tmp")
null = os.open("/dev/null", os.O_RDWR)
for number in range(3):
    os.dup2(null, number)
environment = {"PYTHONHOME": "/usr", "PATH": "/usr/bin"}
os.execve(f"/proc/self/fd/{program}", ["task-executor-agent", "injected"], environment)
