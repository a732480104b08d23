"""Tells callers how they look from here, IPv4 and IPv6: nat_reflect.py PORT...

`where` is answered with the caller's address and port. `tell ADDRESS PORT WORD` sends the word there, from the port
that was asked.
"""
import selectors
import socket
import sys

# How IPv4 looks on a socket that serves both.
MAPPED = "::ffff:"
ready = selectors.DefaultSelector()
for port in sys.argv[1:]:
    server = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    server.bind(("::", int(port)))
    ready.register(server, selectors.EVENT_READ)
print("ready", flush=True)
while True:
    for key, _ in ready.select():
        message, caller = key.fileobj.recvfrom(2048)
        words = message.decode().split()
        if words[0] == "where":
            key.fileobj.sendto(f"{caller[0].removeprefix(MAPPED)} {caller[1]}".encode(), caller)
        else:
            address = words[1] if ":" in words[1] else MAPPED + words[1]
            key.fileobj.sendto(words[3].encode(), (address, int(words[2])))
