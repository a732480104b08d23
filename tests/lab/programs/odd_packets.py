"""Sends packets that no ordinary program sends: odd_packets.py DEVICE SOURCE DESTINATION PORT SEED

They leave through the device as they are, of the IP version of the addresses: options and extension headers, checksums
that are wrong or missing, runs that look as if they belonged together and do not, pieces of any size, unusual flags. No
connection is touched; PORT is the destination of all that has ports. Prints how many were sent.
"""
import random
import socket
import struct
import sys
import time

SOL_PACKET, PACKET_VNET_HDR = 263, 15
ETH_P_IP, ETH_P_IPV6 = 0x0800, 0x86DD
TCP, UDP = 6, 17
FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = (1 << bit for bit in range(8))
NEEDS_CSUM, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, GSO_ECN = 1, 1, 4, 5, 0x80
MTU = 1420


def total(data):
    if len(data) % 2:
        data += b"\0"
    return int.from_bytes(data, "big") % 0xFFFF or 0xFFFF


class Maker:
    def __init__(self, source, destination, port, choose):
        self.is_ipv6 = ":" in source
        family = socket.AF_INET6 if self.is_ipv6 else socket.AF_INET
        self.addresses = socket.inet_pton(family, source) + socket.inet_pton(family, destination)
        self.port, self.choose = port, choose
        self.identification = choose.randrange(1 << 16)

    def ip(self, protocol, content, extras=b"", tos=0, ttl=64, flow=0x12345, df=True, identification=None, offset=0):
        """`extras` are options of IPv4, or extension headers: a list of a type and the rest of it."""
        if self.is_ipv6:
            headers = b""
            for number, (kind, rest) in enumerate(extras or []):
                following = extras[number + 1][0] if number + 1 < len(extras) else protocol
                headers += bytes([following]) + rest
            first = extras[0][0] if extras else protocol
            start = struct.pack(">IHBB", 6 << 28 | tos << 20 | flow, len(headers + content), first, ttl)
            return start + self.addresses + headers + content
        self.identification = (self.identification + 1) & 0xFFFF
        if identification is None:
            identification = self.identification
        length = 20 + len(extras)
        header = struct.pack(
            ">BBHHHBBH",
            *(0x40 | length // 4, tos, length + len(content), identification, df << 14 | offset, ttl, protocol, 0),
        )
        header += self.addresses + extras
        return header[:10] + struct.pack(">H", 0xFFFF - total(header)) + header[12:] + content

    def tcp(
        self, payload, flags=ACK, sequence=1000, options=b"", wrong=0, urgent=0, reserved=0, window=500, port=0, **ip
    ):
        offset = (20 + len(options)) // 4 << 4 | reserved
        head = struct.pack(
            ">HHIIBBHHH", 40000 + port, self.port, sequence & 0xFFFFFFFF, 77, offset, flags, window, 0, urgent
        )
        return self.with_checksum(TCP, head + options + payload, 16, wrong, **ip)

    def udp(self, payload, wrong=0, port=0, unchecked=False, **ip):
        head = struct.pack(">HHHH", 41000 + port, self.port, 8 + len(payload), 0)
        if unchecked:
            return self.ip(UDP, head + payload, **ip)
        return self.with_checksum(UDP, head + payload, 6, wrong, **ip)

    def with_checksum(self, protocol, content, at, wrong, **ip):
        value = 0xFFFF - total(self.addresses + struct.pack(">HH", protocol, len(content)) + content)
        value = (value + wrong) % 0xFFFF or (0xFFFF if protocol == UDP else 0)
        return self.ip(protocol, content[:at] + struct.pack(">H", value) + content[at + 2 :], **ip)

    def bytes(self, size):
        return self.choose.randbytes(size)

    def large(self, l4, size, gso_size, ecn=0, flags=ACK, urgent=0):
        """A packet for the device to have cut: the virtio header, and the packet with the sum of its pseudo header."""
        if l4 == TCP:
            options = b"\1" * self.choose.choice((0, 4, 12))
            tos = 2 if ecn else 0
            packet = bytearray(self.tcp(self.bytes(size), flags, options=options, urgent=urgent, tos=tos))
            kind, at = GSO_TCPV6 if self.is_ipv6 else GSO_TCPV4, 16
        else:
            packet, kind, at = bytearray(self.udp(self.bytes(size))), GSO_UDP_L4, 6
        start = 40 if self.is_ipv6 else 20
        pseudo = total(self.addresses + struct.pack(">HH", l4, len(packet) - start))
        packet[start + at : start + at + 2] = pseudo.to_bytes(2, "big")
        headers = start + (8 if l4 == UDP else (packet[start + 12] >> 4) * 4)
        return struct.pack("=BBHHHH", NEEDS_CSUM, kind | ecn, headers, gso_size, start, at) + packet


# What can set one TCP segment of a run apart.
SEGMENT = (
    {},
    *(dict(flags=flags) for flags in (ACK | PSH, ACK | FIN, ACK | RST, ACK | ECE, ACK | CWR, PSH, ACK | SYN)),
    *(dict(flags=ACK | URG, urgent=1), dict(urgent=1), dict(reserved=1), dict(reserved=8), dict(window=501)),
    *(dict(tos=1), dict(tos=3), dict(tos=0xB8), dict(ttl=63), dict(flow=0x54321), dict(df=False)),
    *(dict(wrong=1), dict(wrong=0x1234), dict(identification=0), dict(port=1), dict(sequence=7), dict(sequence=1000)),
    *(dict(options=b"\1\1\1\0"), dict(options=b"\1\1\x08\x0a" + bytes(8))),
    *(dict(length=length) for length in (-1, 1, None)),
    dict(extended=True),
)


def runs(make):
    """Runs of TCP segments that follow each other, with something that sets one of them apart."""
    size, count = make.choose.choice((2, 3, 7, 100, 536, 1300)), 12
    for what in SEGMENT:
        odd = make.choose.randrange(1, count)
        sequence = make.choose.choice((1000, 0xFFFFFFFF - 3 * size))
        for number in range(count):
            given = dict(what) if number == odd else {}
            change = given.pop("length", 0)
            length = 0 if change is None else size + change
            if given.pop("extended", False):
                given = extended(make)[0]
            yield make.tcp(make.bytes(length), **{"sequence": sequence, **given})
            sequence += length
    for constant in (0, 4711):
        for number in range(4):
            yield make.tcp(make.bytes(50), sequence=1000 + 50 * number, identification=constant)
            yield make.tcp(make.bytes(50), sequence=1000 + 50 * number, identification=constant, df=False)
    for number in range(60):  # two flows that take turns, three at a time
        yield make.tcp(make.bytes(size), sequence=size * number, port=number // 3 % 2)


# What can set one datagram of a run apart.
DATAGRAM = (
    *({}, dict(wrong=1), dict(wrong=0xABCD), dict(tos=3), dict(ttl=1), dict(flow=1), dict(df=False), dict(port=2)),
    dict(identification=9),
)


def datagram_runs(make):
    size, count = make.choose.choice((1, 2, 100, 1200)), 10
    for what in DATAGRAM:
        odd = make.choose.randrange(1, count)
        for number in range(count):
            yield make.udp(make.bytes(size), **(what if number == odd else {}))
    for length in (0, size, size, 0, 0, size, size + 1, size, 0):
        yield make.udp(make.bytes(length))
    for number in range(200):  # more than one packet can hold of them
        yield make.udp(make.bytes(size))
    for number in range(6):
        yield make.udp(make.bytes(size), identification=0)
        yield make.udp(make.bytes(size), unchecked=number % 2 == 1)
    for _ in range(4):  # what sums up to zero, which is sent as its other form
        content = struct.pack(">HHHH", 41000, make.port, 30, 0) + make.bytes(20)
        rest = 0xFFFF - total(make.addresses + struct.pack(">HH", UDP, 30) + content)
        yield make.ip(UDP, content[:6] + b"\xff\xff" + content[8:] + struct.pack(">H", rest))


def extended(make):
    """Options of IPv4, or extension headers."""
    # No operation; router alert; record route; loose source route that has been followed.
    kinds = b"\1\1\1\0", b"\x94\4\0\0", b"\7\x0b\4" + bytes(9), b"\x83\7\4" + bytes(5)
    if make.is_ipv6:
        padding = b"\0\1\4" + bytes(4)
        # Hop-by-hop, destination, both, a route that has been followed, a longer one of destination options.
        kinds = [(0, padding)], [(60, padding)], [(0, padding), (60, padding)], [(43, b"\0\4\0" + bytes(4))]
        kinds += ([(60, b"\1\1\x0c" + bytes(12))],)
    return [dict(extras=kind) for kind in kinds]


def others(make):
    for given in extended(make):
        for number in range(3):
            yield make.tcp(make.bytes(100), sequence=100 * number, **given)
            yield make.udp(make.bytes(100), **given)
    for flags in range(256):
        yield make.tcp(make.bytes(flags % 3), flags=flags, reserved=flags % 16)
    # Maximum segment sizes that pass as they are; those with what goes with them; fast open; SACK.
    usual = b"\2\4\x05\x3c\4\2\x08\x0a" + bytes(8) + b"\1\3\3\7"
    for options in (b"\2\4\x05\x50", usual, b"\2\4\0\x30", b"\x22\2\1\1", b"\x05\x0a" + bytes(8) + b"\1\1"):
        yield make.tcp(b"", flags=SYN, options=options)
        yield make.tcp(make.bytes(10), flags=SYN, options=options)
    echo = b"\x80\0" if make.is_ipv6 else b"\x08\0"
    kind = 58 if make.is_ipv6 else 1
    content = echo + b"\0\0\0\7\0\1" + make.bytes(50)
    pseudo = make.addresses + struct.pack(">HH", kind, len(content)) if make.is_ipv6 else b""
    yield make.ip(kind, content[:2] + struct.pack(">H", 0xFFFF - total(pseudo + content)) + content[4:])
    for protocol in (0x84, 47, 50, 254):
        yield make.ip(protocol, make.bytes(64))
    for offset, more in ((0, True), (8, True), (16, False)):
        piece = make.bytes(64)
        if make.is_ipv6:
            yield make.ip(UDP, piece, extras=[(44, b"\0" + struct.pack(">HI", offset << 3 | more, 99))])
        else:
            yield make.ip(UDP, piece, df=False, identification=99, offset=offset | more << 13)
    for size in range(0, 12):  # headers cut short
        yield make.ip(UDP, make.bytes(size))
        yield make.ip(TCP, make.bytes(size))
    for size in (MTU, MTU - 1, MTU - 7):
        headers = 48 if make.is_ipv6 else 28
        yield make.udp(make.bytes(size - headers))


# Payload of packets that are to be cut, and of their pieces.
LARGE_TCP = (800, 8), (5000, 36), (20000, 536), (60000, 1300), (1301, 1300), (2600, 1300), (100, 100)
LARGE_UDP = (64, 1), (63, 2), (6400, 100), (6399, 100), (60000, 1300), (1301, 1300)


def large(make):
    for size, piece in LARGE_TCP:
        yield make.large(TCP, size, piece)
        yield make.large(TCP, size, piece, GSO_ECN, ACK | CWR | ECE)
        yield make.large(TCP, size, piece, 0, ACK | PSH | FIN)
        for urgent in (1, piece, 2 * piece + 1, 0xFFFF):
            yield make.large(TCP, size, piece, 0, ACK | URG, urgent)
    for size, piece in LARGE_UDP:
        yield make.large(UDP, size, piece)


def main():
    device, source, destination, port, seed = sys.argv[1:]
    choose = random.Random(seed)
    make = Maker(source, destination, int(port), choose)
    out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    out.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    target = (device, ETH_P_IPV6 if make.is_ipv6 else ETH_P_IP)
    packets = [bytes(10) + packet for kind in (runs, datagram_runs, others) for packet in kind(make)]
    packets += large(make)
    for number, packet in enumerate(packets):
        out.sendto(packet, target)
        # Many at once, so that they are read and carried as a batch, but not more than queues hold.
        if number % 60 == 59 or len(packet) > 10000:
            time.sleep(0.02)
    print(len(packets))


main()
