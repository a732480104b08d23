"""Sends datagrams of random bytes and expects each back unchanged: udp_call.py ADDRESS PORT SIZE..."""
import os
import socket
import sys

family, _, _, _, address = socket.getaddrinfo(sys.argv[1], int(sys.argv[2]), type=socket.SOCK_DGRAM)[0]
client = socket.socket(family, socket.SOCK_DGRAM)
client.connect(address)
client.settimeout(2)
for size in map(int, sys.argv[3:]):
    for attempt in range(3):  # UDP may lose one, not three
        data = os.urandom(size)
        client.send(data)
        try:
            while client.recv(65535) != data:  # a late answer to an earlier attempt
                pass
            break
        except socket.timeout:
            continue
    else:
        sys.exit(f"no echo of {size} bytes from {address}")
print("ok")
