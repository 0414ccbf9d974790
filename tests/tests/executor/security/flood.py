"""Opens as many connections to the executor as the argument says, holds them, and opens those again
that are closed. Some say nothing, some half a request, some ask as fast as they can."""

import socket
import sys
import threading

ADDRESS = ("127.0.0.1", 5758)
opened = threading.Semaphore(0)


def hold(number):
    while True:
        try:
            with socket.create_connection(ADDRESS, timeout=60) as connection:
                opened.release()
                if number % 3 == 1:
                    connection.sendall(b"POST /setTasks HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999\r\n\r\n[")
                while number % 3 == 2:
                    connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
                    if not connection.recv(4096):
                        break
                while connection.recv(4096):
                    pass
        except OSError:
            continue


count = int(sys.argv[1])
threading.stack_size(64 << 10)
for number in range(count):
    threading.Thread(target=hold, args=(number,), daemon=True).start()
for _ in range(count):
    opened.acquire()
print("open", flush=True)
threading.Event().wait()
