"""Finds out how the NAT in front of this host behaves, by two reflectors (nat_reflect.py) with two ports each:

nat_probe.py mapping ADDRESS ADDRESS PORT PORT         the local port, then how it looks to each port of each reflector
nat_probe.py filtering ADDRESS ADDRESS PORT PORT       who reaches a port that has called the first port of the first
nat_probe.py where ADDRESS PORT LOCAL                  how a local port looks
nat_probe.py idle ADDRESS PORT HELPER SECONDS          whether the mapping of a port still works after a silence

`filtering` prints some of: same (who was called), port (other port of it), address (the other reflector).
HELPER is another port of the reflector.
"""
import socket
import sys
import time

PATIENCE = 5
# From asking a reflector until what it was told to send would be here.
ANSWERED_WITHIN = 0.4


def resolve(address, port):
    return socket.getaddrinfo(address, int(port), type=socket.SOCK_DGRAM)[0][4]


def open_port(target, local=0):
    caller = socket.socket(socket.AF_INET6 if ":" in target[0] else socket.AF_INET, socket.SOCK_DGRAM)
    caller.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    caller.bind(("", local))
    return caller


def where(caller, target):
    end = time.monotonic() + PATIENCE
    caller.settimeout(1)
    while time.monotonic() < end:
        caller.sendto(b"where", target)
        try:
            while True:
                answer, sender = caller.recvfrom(2048)
                if sender[:2] == target[:2]:
                    return answer.decode()
        except socket.timeout:
            continue
    sys.exit(f"{target} does not answer")


def words_heard(caller):
    heard = set()
    end = time.monotonic() + ANSWERED_WITHIN
    while (left := end - time.monotonic()) > 0:
        caller.settimeout(left)
        try:
            heard.add(caller.recv(2048).decode())
        except socket.timeout:
            break
    return heard


def mapping(one, other, first, second):
    targets = [resolve(address, port) for address in (one, other) for port in (first, second)]
    caller = open_port(targets[0])
    looks = [where(caller, target) for target in targets]
    print(caller.getsockname()[1], *looks, sep="\n")


def filtering(one, other, first, second):
    called = resolve(one, first)
    caller = open_port(called)
    look = where(caller, called)
    # Asked from elsewhere, so that the caller's own mapping sees nothing of it.
    helper = open_port(called)
    # The one that is let in by all comes last: what the others send must stand on its own.
    for word, target in (("address", resolve(other, first)), ("port", resolve(one, second)), ("same", called)):
        helper.sendto(f"tell {look} {word}".encode(), target)
    print(*sorted(words_heard(caller)))


def idle(address, port, helper_port, seconds):
    called = resolve(address, port)
    caller = open_port(called)
    look = where(caller, called)
    time.sleep(float(seconds))
    # The helper's mapping is a fresh one; what it asks for comes from the very port that was called.
    helper = open_port(called)
    where(helper, resolve(address, helper_port))
    helper.sendto(f"tell {look} same".encode(), called)
    print("works" if words_heard(caller) else "gone")


def look_of(address, port, local):
    target = resolve(address, port)
    print(where(open_port(target, int(local)), target))


{"mapping": mapping, "filtering": filtering, "where": look_of, "idle": idle}[sys.argv[1]](*sys.argv[2:])
