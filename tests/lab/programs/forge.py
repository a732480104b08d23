"""Sends UDP packets with a source address of one's choice: forge.py SOURCE DESTINATION COUNT"""
import ipaddress
import socket
import struct
import sys

source, destination, count = ipaddress.ip_address(sys.argv[1]), ipaddress.ip_address(sys.argv[2]), int(sys.argv[3])


def checksum(data):
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def udp(payload):
    length = 8 + len(payload)
    pseudo = source.packed + destination.packed
    pseudo += struct.pack("!IHBB", length, 0, 0, 17) if source.version == 6 else struct.pack("!BBH", 0, 17, length)
    header = struct.pack("!HHHH", 4000, 4000, length, 0)
    return struct.pack("!HHHH", 4000, 4000, length, checksum(pseudo + header + payload) or 0xFFFF) + payload


def packet(payload):
    segment = udp(payload)
    if source.version == 6:
        return struct.pack("!IHBB", 6 << 28, len(segment), 17, 64) + source.packed + destination.packed + segment
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(segment), 0, 0, 64, 17, 0) + source.packed + destination.packed
    return header[:10] + struct.pack("!H", checksum(header)) + header[12:] + segment


family = socket.AF_INET6 if source.version == 6 else socket.AF_INET
raw = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW)
target = (str(destination), 0, 0, 0) if source.version == 6 else (str(destination), 0)
for number in range(count):
    raw.sendto(packet(b"forged %d" % number), target)
print("ok")
