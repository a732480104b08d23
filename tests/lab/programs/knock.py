"""Knocks at a UDP port with everything a stranger might say, and prints the number of answers: knock.py ADDRESS PORT"""
import os
import socket
import struct
import sys

family, _, _, _, address = socket.getaddrinfo(sys.argv[1], int(sys.argv[2]), type=socket.SOCK_DGRAM)[0]
knocker = socket.socket(family, socket.SOCK_DGRAM)
knocks = [
    struct.pack("!HHI", 0x0001, 0, 0x2112A442) + os.urandom(12),  # STUN Binding request
    b"\x01\0\0\0" + os.urandom(144),  # WireGuard initiation
    b"\x02\0\0\0" + os.urandom(88),  # WireGuard response
    b"\x03\0\0\0" + os.urandom(60),  # WireGuard cookie reply
    b"\x04\0\0\0" + os.urandom(76),  # WireGuard data
    b"agn\x01\x01\0\0\0" + os.urandom(400),  # introduction
    b"agn\x02\x01\0\0\0" + os.urandom(400),  # relay frame
    b"",
    b"\0",
    os.urandom(1200),
]
answers = 0
for knock in knocks * 3:
    knocker.sendto(knock, address)
knocker.settimeout(2)
try:
    while True:
        knocker.recv(65535)
        answers += 1
except OSError:
    pass
print(answers)
