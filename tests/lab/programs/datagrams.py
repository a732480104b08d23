"""UDP datagrams of every size, alone and in trains, and what became of them.

datagrams.py receive ADDRESS PORT FLOWS ROUNDS SEED [reordered]
datagrams.py send ADDRESS PORT FLOWS ROUNDS SEED TIMEOUT

SEED decides what is sent, so that the receiver knows it. Flow `n` goes to PORT + n; on the port after those of all
flows the receiver answers how many have come. Each round a few datagrams leave, in several ways; then the sender waits
until the receiver has them all, for TIMEOUT seconds at most, so that no queue on the way is ever full. The receiver
fails for a datagram that was never sent, that came twice, or, unless `reordered`, later than one of its flow that was
sent after it. It prints how many were sent, how many of those received, and bytes received.
"""
import random
import select
import socket
import struct
import sys
import time

UDP_SEGMENT = 103
SO_RCVBUFFORCE = 33
# What IPv4 has room for, less both headers.
LONGEST = 65_507
# What fits the MTU of the interface over IPv6, and trains of 64 (`UDP_MAX_SEGMENTS` of older kernels).
SEGMENT_MOST = 1420 - 48
TRAIN_MOST = 64
# Bytes of one round: less than the smallest buffer on the way.
ROUND_BYTES = 100_000
EDGES = (0, 1, 2, 3, 7, 8, 63, 64, 65, 1152, 1200, 1231, 1232, 1233, 1371, 1372, 1373, 1391, 1392, 1393, 8000)


def family_of(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def sizes_of_send(choose):
    """Sizes of the datagrams of one send: a train, or one."""
    kind = choose.randrange(8)
    if kind < 4:
        size = choose.choice((1, 2, 100, 512, 1200, SEGMENT_MOST, choose.randint(1, SEGMENT_MOST)))
        count = choose.randint(2, min(TRAIN_MOST, LONGEST // size))
        return [size] * (count - 1) + [choose.randint(1, size)]
    if kind == 4:
        return [choose.choice(EDGES)]
    if kind == 5:
        return [choose.randint(1, LONGEST)]
    return [choose.randint(1, SEGMENT_MOST)]


def rounds(seed, flows, count):
    """Rounds of sends: each a flow and the datagrams that leave in one piece."""
    choose = random.Random(seed)
    for number in range(count):
        sends, left = [], ROUND_BYTES
        for _ in range(choose.randint(1, 12)):
            sizes = [LONGEST] if number == 0 and not sends else sizes_of_send(choose)
            if sum(sizes) > left:
                break
            left -= sum(sizes)
            flow = choose.randrange(flows)
            # Some kinds of traffic are runs of equal sizes that leave one by one.
            apart = len(sizes) > 1 and choose.randrange(3) == 0
            data = [choose.randbytes(size) for size in sizes]
            sends += [(flow, [each]) for each in data] if apart else [(flow, data)]
        yield sends


def ask(control, question, timeout):
    """Asks how many have come; None if nobody says so in time. Answers to earlier questions may come late."""
    control.send(question)
    while select.select([control], [], [], timeout)[0]:
        answered, count = control.recv(64).split()
        if answered == question:
            return int(count)


def send(address, port, flows, count, seed, timeout):
    *sockets, control = [socket.socket(family_of(address), socket.SOCK_DGRAM) for _ in range(flows + 1)]
    for number, each in enumerate((*sockets, control)):
        each.connect((address, port + number))
    sent = 0
    for sends in rounds(seed, flows, count):
        for flow, data in sends:
            train = [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("H", len(data[0])))] if len(data) > 1 else []
            sockets[flow].sendmsg([b"".join(data)], train)
            sent += len(data)
        end = time.monotonic() + timeout
        while (ask(control, b"?", 0.01) or 0) < sent and time.monotonic() < end:
            pass
    try:
        while ask(control, b"end", 0.1) is None:
            pass
    except ConnectionRefusedError:  # it has ended, and its answer was lost
        pass


class Flow:
    """What is to come, and what has."""

    def __init__(self):
        # Numbers of the datagrams with this content: short ones can be alike.
        self.expected = {}
        self.latest = -1

    def take(self, data, reordered):
        """Says what is wrong with a datagram, if anything."""
        waiting = self.expected.get(data)
        if not waiting:
            return "was never sent" if waiting is None else "came twice"
        # Of several alike the first that keeps the order is meant, if there is one.
        later = next((number for number in waiting if number > self.latest), None)
        if later is None and not reordered:
            return f"is number {waiting[0]}, after {self.latest}"
        waiting.remove(waiting[0] if later is None else later)
        self.latest = max(self.latest, later or 0)


def receive(address, port, flows, count, seed, reordered):
    *sockets, control = [socket.socket(family_of(address), socket.SOCK_DGRAM) for _ in range(flows + 1)]
    for number, each in enumerate((*sockets, control)):
        each.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
        each.bind((address, port + number))
    tables, numbers = [Flow() for _ in range(flows)], 0
    for sends in rounds(seed, flows, count):
        for flow, data in sends:
            for each in data:
                tables[flow].expected.setdefault(each, []).append(numbers)
                numbers += 1
    print("ready", flush=True)
    received = length = 0
    while True:
        ready = select.select((*sockets, control), [], [], 20)[0]
        if not ready:
            sys.exit(f"nothing for 20 s, after {received} of {numbers}")
        for flow, each in enumerate(sockets):
            if each in ready:
                data = each.recv(1 << 17)
                if wrong := tables[flow].take(data, reordered):
                    sys.exit(f"flow {flow}, after {received}: one of {len(data)} bytes {wrong}: {data[:32].hex()}")
                received += 1
                length += len(data)
        # Asked last, so that all that came before the question is counted.
        if ready == [control]:
            question, peer = control.recvfrom(64)
            control.sendto(question + b" " + str(received).encode(), peer)
            if question == b"end":
                print(numbers, received, length)
                return


def main():
    what, address = sys.argv[1:3]
    port, flows, count = map(int, sys.argv[3:6])
    if what == "receive":
        receive(address, port, flows, count, sys.argv[6], sys.argv[7:] == ["reordered"])
    else:
        send(address, port, flows, count, sys.argv[6], float(sys.argv[7]))


main()
