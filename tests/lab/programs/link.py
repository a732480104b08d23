"""A link between two namespaces that delays, loses, holds back and paces: link.py CONTROL NAMESPACE/DEVICE NAMESPACE/DEVICE

Makes a TAP device in each namespace, first end and second end, and carries Ethernet frames between them. Direction 0
is from the first end to the second. On CONTROL, a Unix datagram socket, it takes one JSON document
`[shape, shape]`, a shape for each direction, or `null` for no change, and answers with what it has counted so far:
`[counts, counts]`. Members of a shape: delay, jitter, reorder_by (seconds), loss, reorder (fractions), rate (bits per
second, 0: unlimited), queue (bytes that wait for the rate at most), drop_over (bytes of an IP packet, 0: none).

Only IP packets come to harm. Address resolution is always delayed but never lost: a dead path stays silent, it does
not turn into an error at the sender.
"""
import ctypes
import fcntl
import heapq
import json
import os
import random
import select
import socket
import struct
import sys
import time

CLONE_NEWNET = 0x40000000
TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000
# Bounds what a link holds, all delays together, as the cable's length would.
HELD_MOST = 64 << 20
FRAME_MOST = 65536
# Frames read from one end before the other has its turn.
BURST = 64
ETHERNET = 14


def tap(namespace, device):
    with open(f"/run/netns/{namespace}") as where:
        if ctypes.CDLL(None, use_errno=True).setns(where.fileno(), CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", device.encode(), IFF_TAP | IFF_NO_PI))
    return descriptor


def is_resolution(frame):
    """ARP, and ICMPv6 from router solicitation to redirect."""
    kind = frame[12:14]
    if kind == b"\x08\x06":
        return True
    return kind == b"\x86\xdd" and len(frame) > 54 and frame[20] == 58 and 133 <= frame[54] <= 137


class Direction:
    def __init__(self, source, sink):
        self.source, self.sink = source, sink
        self.waiting = []
        self.number = self.held = 0
        self.line_free = self.last_due = 0.0
        self.counts = dict(passed=0, lost=0, too_big=0, queue_full=0, held_back=0)
        self.change(dict(delay=0, jitter=0, reorder_by=0, loss=0, reorder=0, rate=0, queue=0, drop_over=0))

    def change(self, shape):
        self.shape = shape
        self.last_due = 0.0

    def take(self, frame, now):
        """Decides about a frame that has arrived."""
        shape, counts = self.shape, self.counts
        due = now + shape["delay"]
        if not is_resolution(frame):
            size = len(frame)
            if shape["drop_over"] and size - ETHERNET > shape["drop_over"]:
                counts["too_big"] += 1
                return
            if shape["loss"] and random.random() < shape["loss"]:
                counts["lost"] += 1
                return
            if self.held + size > HELD_MOST:
                counts["queue_full"] += 1
                return
            if shape["rate"]:
                start = max(self.line_free, now)
                if (start - now) * shape["rate"] / 8 + size > shape["queue"]:
                    counts["queue_full"] += 1
                    return
                self.line_free = start + size * 8 / shape["rate"]
                due = self.line_free + shape["delay"]
            if shape["jitter"]:
                due += random.uniform(-shape["jitter"], shape["jitter"])
            # Jitter alone keeps the order; only frames that are held back are overtaken.
            due = self.last_due = max(due, self.last_due)
            if shape["reorder"] and random.random() < shape["reorder"]:
                counts["held_back"] += 1
                due += shape["reorder_by"]
        if due <= now and not self.waiting:
            self.put(frame)
            return
        self.number += 1
        self.held += len(frame)
        heapq.heappush(self.waiting, (due, self.number, frame))

    def put(self, frame):
        try:
            os.write(self.sink, frame)
            self.counts["passed"] += 1
        except OSError:  # the end is down, or its queue is full
            self.counts["queue_full"] += 1

    def read(self):
        for _ in range(BURST):
            try:
                frame = os.read(self.source, FRAME_MOST)
            except OSError:  # nothing more, or the end is down
                return
            self.take(frame, time.monotonic())

    def release(self):
        now = time.monotonic()
        while self.waiting and self.waiting[0][0] <= now:
            frame = heapq.heappop(self.waiting)[2]
            self.held -= len(frame)
            self.put(frame)


def take_precedence():
    """A cable does not wait for a processor. Next best: before everything that has no deadline."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except OSError:  # not in this control group
        os.nice(-20)


def answer(control, directions):
    message, sender = control.recvfrom(FRAME_MOST)
    shapes = json.loads(message)
    for direction, shape in zip(directions, shapes or ()):
        direction.change(shape)
    control.sendto(json.dumps([direction.counts for direction in directions]).encode(), sender)


def main():
    control = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    control.bind(sys.argv[1])
    first, second = (tap(*end.split("/")) for end in sys.argv[2:4])
    directions = Direction(first, second), Direction(second, first)
    by_source = {first: directions[0], second: directions[1]}
    take_precedence()
    print("ready", flush=True)
    while True:
        due = min((direction.waiting[0][0] for direction in directions if direction.waiting), default=None)
        timeout = None if due is None else max(0.0, due - time.monotonic())
        # `select` and not `poll`: it counts microseconds.
        for ready in select.select([first, second, control], [], [], timeout)[0]:
            if ready is control:
                answer(control, directions)
            else:
                by_source[ready].read()
        for direction in directions:
            direction.release()


main()
