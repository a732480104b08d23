"""Makes connection tracking of this namespace forget everything, as `conntrack -F` does."""
import errno
import os
import socket
import struct
import sys

NETLINK_NETFILTER = 12
SUBSYSTEM_CTNETLINK, MESSAGE_DELETE = 1, 2
REQUEST_ACK = 5
netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
header = struct.pack("=IHHII", 20, SUBSYSTEM_CTNETLINK << 8 | MESSAGE_DELETE, REQUEST_ACK, 1, 0)
netlink.send(header + struct.pack("=BBH", socket.AF_UNSPEC, 0, 0))
error = -struct.unpack_from("=i", netlink.recv(4096), 16)[0]
if error not in (0, errno.ENOENT):
    sys.exit(f"cannot forget: {os.strerror(error)}")
