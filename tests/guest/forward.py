"""One guest connection: joins standard input and output to a Unix socket (guestfwd=…-cmd:)."""

import os
import select
import socket
import sys

server = socket.socket(socket.AF_UNIX)
server.connect(sys.argv[1])
watched = [0, server]
while server in watched:
    for ready in select.select(watched, [], [])[0]:
        if ready == 0:
            data = os.read(0, 65536)
            if data:
                server.sendall(data)
            else:
                # The guest has sent its whole request; the answer may still be under way.
                server.shutdown(socket.SHUT_WR)
                watched.remove(0)
        else:
            data = server.recv(65536)
            if not data:
                watched.remove(server)
            while data:
                data = data[os.write(1, data):]
