"""A gRPC server without generated code: grpc_serve.py ADDRESS PORT (an IPv6 address in brackets)"""
import sys
from concurrent import futures

import grpc


def echo(request, context):
    return request


def count(request, context):
    for number in range(int(request)):
        yield b"%d" % number


def mirror(requests, context):
    for request in requests:
        yield request[::-1]


methods = {
    "Echo": grpc.unary_unary_rpc_method_handler(echo),
    "Count": grpc.unary_stream_rpc_method_handler(count),
    "Mirror": grpc.stream_stream_rpc_method_handler(mirror),
}
server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("agentnet.Lab", methods),))
if server.add_insecure_port(f"{sys.argv[1]}:{sys.argv[2]}") == 0:
    sys.exit("cannot listen")
server.start()
print("ready", flush=True)
server.wait_for_termination()
