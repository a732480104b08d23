"""Calls grpc_serve.py, unary and streaming, and checks every answer: grpc_call.py ADDRESS PORT"""
import os
import sys

import grpc

WITHIN = 20
channel = grpc.insecure_channel(f"{sys.argv[1]}:{sys.argv[2]}")
grpc.channel_ready_future(channel).result(timeout=WITHIN)

echo = channel.unary_unary("/agentnet.Lab/Echo")
for size in (0, 1, 1000, 1000000):
    sent = os.urandom(size)
    if echo(sent, timeout=WITHIN) != sent:
        sys.exit(f"unary: {size} bytes came back changed")

count = channel.unary_stream("/agentnet.Lab/Count")
numbers = [int(message) for message in count(b"1000", timeout=WITHIN)]
if numbers != list(range(1000)):
    sys.exit(f"server streaming: {len(numbers)} messages, not the numbers 0 to 999 in order")

mirror = channel.stream_stream("/agentnet.Lab/Mirror")
sent = [os.urandom(1000) for _ in range(500)]
if [message[::-1] for message in mirror(iter(sent), timeout=WITHIN)] != sent:
    sys.exit("bidirectional streaming: messages lost or changed")
print("4 unary calls, 1000 messages streamed down, 500 both ways")
