"""Asks a UDP echo every 5 ms: first_answer.py ADDRESS PORT

Prints the Unix time of the first answer, and ends.
"""
import os
import select
import socket
import sys
import time

INTERVAL = 0.005

address, port = sys.argv[1], int(sys.argv[2])
client = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
client.setblocking(False)
question = os.urandom(16)
print("ready", flush=True)
due = time.monotonic()
while True:
    try:
        client.sendto(question, (address, port))
    except OSError:  # nobody knows the way yet
        pass
    due += INTERVAL
    while select.select([client], [], [], max(0.0, due - time.monotonic()))[0]:
        try:
            if client.recv(64) == question:
                print(time.time())
                sys.exit()
        except OSError:  # nobody is there yet
            pass
