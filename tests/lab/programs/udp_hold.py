"""Holds a UDP port, IPv4 and IPv6: udp_hold.py PORT"""
import socket
import sys
import time

held = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
held.bind(("::", int(sys.argv[1])))
print("ready", flush=True)
time.sleep(600)
