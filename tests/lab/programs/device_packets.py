"""What leaves the device of one agent and what enters that of another, packet by packet.

device_packets.py record DEVICE FILE OWN_IPV6 PEER_IPV6 OWN_IPV4 PEER_IPV4     until interrupted
device_packets.py compare SENT RECEIVED in_order|some_lost|flows|reordered

`record` sees packets as the device does, with the virtio header of those that are yet to be cut or to get a checksum.
It cuts them and completes their checksums as a kernel does for a device without offloads, and writes those from own to
peer to FILE.sent, those from peer to own to FILE.received. It shares nothing with the agent. In the files packets have
no addresses, as IPv4 aliases differ from side to side, and in place of each checksum is what the sum comes to: 0xffff
for a right one. Prints what it has counted: packets of the device, and those of them that were to be cut.

`compare` takes FILE.sent of one side and FILE.received of the other. `in_order`: both are the same. `some_lost`:
packets are missing, and nothing else. `flows`: each flow for itself is the same; TCP may be reordered, as a kernel
moves such a flow to another queue when its first answer has come. `reordered`: neither something new nor something twice. Prints how many packets
were sent and received.
"""
import collections
import ctypes
import json
import socket
import struct
import sys

ETH_P_ALL = 3
PACKET_OUTGOING = 4
SOL_PACKET, PACKET_STATISTICS, PACKET_VNET_HDR = 263, 6, 15
SO_RCVBUFFORCE = 33
VNET_HEADER = struct.Struct("=BBHHHH")
NEEDS_CSUM, GSO_ECN = 1, 0x80
# Types of segmentation: protocol, IP version, where the checksum is.
CUTS = {1: (6, 4, 16), 4: (6, 6, 16), 5: (17, None, 6)}
CHECKSUM_AT = {1: 2, 6: 16, 17: 6, 58: 2}
ICMP, ICMP_ERRORS = 1, (3, 11, 12)
FIN, PSH, URG, CWR = 0x01, 0x08, 0x20, 0x80
HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION = 0, 43, 44, 60


def total(data):
    """One's complement sum of 16 bit words; 0xffff for 0, which sums of packets never are."""
    if len(data) % 2:
        data = bytes(data) + b"\0"
    return int.from_bytes(data, "big") % 0xFFFF or 0xFFFF


def get(data, at):
    return int.from_bytes(data[at : at + 2], "big")


def put(data, at, value):
    data[at : at + 2] = value.to_bytes(2, "big")


class Layout:
    """Where things are in a packet."""

    def __init__(self, packet):
        self.version = packet[0] >> 4
        if self.version == 4:
            self.l4, self.protocol = (packet[0] & 15) * 4, packet[9]
            self.addresses = slice(12, 20)
            self.end = get(packet, 2)
            self.is_fragment = get(packet, 6) & 0x3FFF != 0
            self.is_later_fragment = get(packet, 6) & 0x1FFF != 0
        else:
            self.l4, self.protocol, self.is_fragment, self.is_later_fragment = 40, packet[6], False, False
            self.addresses = slice(8, 40)
            self.end = 40 + get(packet, 4)
            while self.protocol in (HOP_BY_HOP, ROUTING, DESTINATION, FRAGMENT) and not self.is_fragment:
                self.is_fragment = self.protocol == FRAGMENT
                header = packet[self.l4 : self.l4 + 4]
                self.is_later_fragment = self.is_fragment and header[2:] >= b"\0\x08"
                self.l4 += 8 if self.is_fragment else (header[1] + 1) * 8
                self.protocol = header[0]

    def pseudo_header(self, packet):
        if self.protocol == ICMP:
            return b""
        return packet[self.addresses] + struct.pack(">HH", self.protocol, self.end - self.l4)


def cut(header, packet):
    """The packets that leave in place of one of the device."""
    flags, gso_type, _, gso_size, start, offset = header
    if gso_type == 0:
        if flags & NEEDS_CSUM:
            packet = bytearray(packet)
            complete(packet, start, offset, len(packet) - start)
        yield bytes(packet)
        return
    protocol, version, checksum = CUTS[gso_type & ~GSO_ECN]
    layout = Layout(packet)
    assert layout.protocol == protocol and version in (None, layout.version), "segmentation of something else"
    assert flags & NEEDS_CSUM and (start, offset) == (layout.l4, checksum), "segmentation without a checksum"
    headers = layout.l4 + (8 if protocol == 17 else (packet[layout.l4 + 12] >> 4) * 4)
    pieces = [packet[at : at + gso_size] for at in range(headers, len(packet), gso_size)]
    for number, piece in enumerate(pieces):
        segment = bytearray(packet[:headers] + piece)
        if layout.version == 4:
            put(segment, 2, len(segment))
            put(segment, 4, (get(segment, 4) + number) & 0xFFFF)
            put(segment, 10, 0)
            put(segment, 10, 0xFFFF - total(segment[: layout.l4]))
        else:
            put(segment, 4, len(segment) - 40)
        if protocol == 6:
            at = layout.l4 + 4
            sequence = int.from_bytes(segment[at : at + 4], "big") + number * gso_size
            segment[at : at + 4] = (sequence & 0xFFFFFFFF).to_bytes(4, "big")
            if number > 0:
                segment[layout.l4 + 13] &= 0xFF ^ CWR
            if number + 1 < len(pieces):
                segment[layout.l4 + 13] &= 0xFF ^ (FIN | PSH)
            if number > 0 and segment[layout.l4 + 13] & URG:
                # A kernel would repeat it, and with that make later bytes urgent.
                left = max(0, get(segment, layout.l4 + 18) - number * gso_size)
                segment[layout.l4 + 13] &= 0xFF if left else 0xFF ^ URG
                put(segment, layout.l4 + 18, left)
        else:
            put(segment, layout.l4 + 4, len(segment) - layout.l4)
        complete(segment, start, offset, len(packet) - start)
        yield bytes(segment)


def complete(packet, start, offset, length):
    """The field holds the sum of a pseudo header with that length."""
    change = len(packet) - start - length
    field = (get(packet, start + offset) + change) % 0xFFFF
    put(packet, start + offset, field)
    checksum = 0xFFFF - total(packet[start:])
    put(packet, start + offset, checksum or (0xFFFF if offset == 6 else 0))


def comparable(packet):
    layout = Layout(packet)
    packet = bytearray(packet[: layout.end])
    at = layout.l4 + CHECKSUM_AT.get(layout.protocol, 0)
    has_checksum = at > layout.l4 and at + 2 <= len(packet) and not layout.is_later_fragment
    if has_checksum and not (layout.protocol == 17 and get(packet, at) == 0):
        # That of the first fragment is about bytes that are elsewhere.
        put(packet, at, 0 if layout.is_fragment else total(layout.pseudo_header(packet) + packet[layout.l4 :]))
    if layout.version == 4:
        put(packet, 10, total(packet[: layout.l4]))
        # What is never fragmented needs no identification, and there is none to be kept (RFC 6864, section 4.1).
        if layout.protocol == 6 and get(packet, 6) & 0x4000:
            put(packet, 4, 0)
    packet[layout.addresses] = bytes(len(packet[layout.addresses]))
    if layout.protocol == ICMP and packet[layout.l4] in ICMP_ERRORS:
        # It quotes a packet, whose checksums cannot be checked, as the rest is missing.
        quote = memoryview(packet)[layout.l4 + 8 :]
        inner = Layout(quote)
        put(quote, 10, 0)
        if inner.protocol in CHECKSUM_AT:
            put(quote, inner.l4 + CHECKSUM_AT[inner.protocol], 0)
        quote[inner.addresses] = bytes(8)
    return bytes(packet)


def record(device, file, own6, peer6, own4, peer4):
    libc = ctypes.CDLL(None)
    taken = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    taken.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 512 << 20)
    taken.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    taken.bind((device, ETH_P_ALL))
    packets = []
    print("ready", flush=True)
    try:
        while True:
            packets.append(taken.recvfrom(1 << 17))
    except KeyboardInterrupt:
        pass
    taken.setblocking(False)
    try:
        while True:
            packets.append(taken.recvfrom(1 << 17))
    except BlockingIOError:
        pass
    lost = struct.unpack("II", taken.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))[1]
    assert lost == 0, f"{lost} packets were not recorded"
    ends = {6: (own6, peer6), 4: (own4, peer4)}
    binary = {6: lambda text: socket.inet_pton(socket.AF_INET6, text), 4: socket.inet_aton}
    ends = {version: tuple(map(binary[version], pair)) for version, pair in ends.items()}
    counts = dict(sent=0, sent_cut=0, sent_ecn=0, received=0, received_cut=0, received_other=0)
    with open(f"{file}.sent", "wb") as sent, open(f"{file}.received", "wb") as received:
        for data, (_, _, kind, *_) in packets:
            is_sent = kind == PACKET_OUTGOING
            header, packet = VNET_HEADER.unpack_from(data), data[VNET_HEADER.size :]
            own, peer = ends[packet[0] >> 4]
            if packet[Layout(packet).addresses] != (own + peer if is_sent else peer + own):
                # A host looks for neighbours and routers of its own accord; an agent gives it nothing of the kind.
                counts["received_other"] += not is_sent
                continue
            name = "sent" if is_sent else "received"
            counts[name] += 1
            counts[f"{name}_cut"] += header[1] != 0
            counts["sent_ecn"] += is_sent and header[1] & GSO_ECN != 0
            for each in cut(header, packet):
                line = comparable(each)
                (sent if is_sent else received).write(struct.pack(">I", len(line)) + line)
    print(json.dumps(counts))


def packets_of(file):
    with open(file, "rb") as packets:
        while length := packets.read(4):
            yield packets.read(int.from_bytes(length, "big"))


def shown(packet):
    layout = Layout(packet)
    return f"protocol {layout.protocol}, {len(packet)} bytes: {packet[:100].hex()}"


def compare(sent, received, how):
    sent, received = list(packets_of(sent)), list(packets_of(received))
    if how == "reordered":
        compare_unordered(sent, received)
    elif how == "flows":
        flows_sent, flows_received = by_flow(sent), by_flow(received)
        for flow, came in flows_received.items():
            if flow.protocol == 6:
                compare_unordered(flows_sent[flow], came)
            else:
                compare_order(flows_sent[flow], came, may_lose=False)
    else:
        compare_order(sent, received, may_lose=how == "some_lost")
    print(len(sent), len(received))


Flow = collections.namedtuple("Flow", "version protocol is_fragment about")


def by_flow(packets):
    flows = collections.defaultdict(list)
    for packet in packets:
        layout = Layout(packet)
        if layout.is_fragment:
            # What tells a kernel of its flow is in the first fragment only.
            about = packet[4:6] if layout.version == 4 else packet[layout.l4 - 4 : layout.l4]
        else:
            about = packet[layout.l4 : layout.l4 + 4] if layout.protocol in (6, 17) else b""
        flows[Flow(layout.version, layout.protocol, layout.is_fragment, about)].append(packet)
    return flows


def compare_unordered(sent, received):
    new = collections.Counter(received) - collections.Counter(sent)
    if new:
        sys.exit(f"{sum(new.values())} were never sent, or came twice, such as {shown(next(iter(new)))}")


def compare_order(sent, received, may_lose):
    left = iter(enumerate(sent))
    before = -1
    for number, packet in enumerate(received):
        at = next((at for at, other in left if other == packet), None)
        if at is None or (not may_lose and at != before + 1):
            expected = shown(sent[before + 1]) if before + 1 < len(sent) else "nothing"
            where = [at for at, other in enumerate(sent) if other == packet]
            sys.exit(
                f"number {number} of {len(received)} is {shown(packet)}\n"
                f"number {before + 1} of {len(sent)} sent is {expected}\n"
                f"what came was sent as {where or 'none'}"
            )
        before = at
    if not may_lose and len(received) != len(sent):
        sys.exit(f"{len(received)} of {len(sent)} came; the first missing: {shown(sent[len(received)])}")


if sys.argv[1] == "record":
    record(*sys.argv[2:])
else:
    compare(*sys.argv[2:])
