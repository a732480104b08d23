"""TCP streams of pseudo-random bytes, and what became of them.

streams.py receive ADDRESS PORT COUNT            COUNT connections, one after the other or at once
streams.py send ADDRESS PORT COUNT BYTES SEED    so many at once, BYTES on each, in writes of random sizes

Both print one line for each connection: number, bytes, SHA-256, in order of the number. A connection begins with its
number. SEED and number decide what is in it and how it is written: one connection in three in large pieces, one in
random ones, one in random ones without Nagle.
"""
import hashlib
import random
import socket
import sys
import threading

CHUNK = 1 << 20
# A write is at most this long, mostly much shorter: small numbers are frequent in a Pareto distribution.
WRITE_MOST = 300_000


def family_of(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def connection(address, port):
    client = socket.socket(family_of(address), socket.SOCK_STREAM)
    client.connect((address, port))
    return client


def write_all(client, data, choose):
    """In pieces of random sizes. One in a hundred ends with an urgent byte, which stays in its place in the stream."""
    view = memoryview(data)
    while view:
        size = min(WRITE_MOST, int(200 * choose.paretovariate(0.6)))
        client.sendall(view[:size])
        view = view[size:]
        if view and choose.randrange(100) == 0:
            client.send(view[:1], socket.MSG_OOB)
            view = view[1:]


def send(address, port, number, length, seed, results):
    choose = random.Random(f"{seed} {number}")
    digest = hashlib.sha256()
    with connection(address, port) as client:
        client.sendall(number.to_bytes(4, "big"))
        if number % 3 == 2:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        left = length
        while left:
            data = choose.randbytes(min(CHUNK, left))
            left -= len(data)
            digest.update(data)
            if number % 3 == 0:
                client.sendall(data)
            else:
                write_all(client, data, choose)
        client.shutdown(socket.SHUT_WR)
        # Until the other side has read everything.
        client.recv(1)
    results[number] = (length, digest.hexdigest())


def receive(client, results):
    digest = hashlib.sha256()
    with client:
        number = int.from_bytes(client.recv(4, socket.MSG_WAITALL), "big")
        length = 0
        while data := client.recv(CHUNK):
            length += len(data)
            digest.update(data)
        client.sendall(b"!")
    results[number] = (length, digest.hexdigest())


def main():
    what, address, port, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    results, threads = {}, []
    if what == "receive":
        with socket.socket(family_of(address), socket.SOCK_STREAM) as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
            server.bind((address, port))
            server.listen(count)
            print("ready", flush=True)
            for _ in range(count):
                threads.append(threading.Thread(target=receive, args=(server.accept()[0], results)))
                threads[-1].start()
    else:
        length, seed = int(sys.argv[5]), sys.argv[6]
        for number in range(count):
            threads.append(threading.Thread(target=send, args=(address, port, number, length, seed, results)))
            threads[-1].start()
    for thread in threads:
        thread.join()
    for number in sorted(results):
        print(number, *results[number])


main()
