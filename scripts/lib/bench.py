"""What scripts/bench measures. Two hosts are two network namespaces joined by a veth pair; every candidate has its own
two, and the candidates take turns, so that whatever else the machine does hits all of them.

Figures: throughput in Gbit/s of TCP payload (iperf3), rates in datagrams a second with under half a percent lost,
round trips in milliseconds (ping), CPU seconds of both ends' processes per Gbit, resident memory of one end in MiB.
"""

import argparse
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time

MTU = 1420
LOSS = 0.005
UNDERLAY = ("10.78.0.1", "10.78.0.2")
OVERLAY_V4 = ("10.99.0.1", "10.99.0.2")
OVERLAY_V6 = ("fd99::1", "fd99::2")
UDP_SIZES = (1372, 64)
# A search begins here, datagrams a second, and ends when it is this exact.
LEAST_RATE = 5_000
PRECISION = 1.08
PROBE_SECONDS = 1.0
# Before memory is looked at.
REST_SECONDS = 10


def run(command, **options):
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, **options)
    if done.returncode != 0:
        raise RuntimeError(f"{shlex.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


class Hosts:
    """Two namespaces with a veth pair between them, and what was started in them."""

    def __init__(self, number):
        self.names = [f"anb-{os.getpid()}-{number}{end}" for end in "ab"]
        self.processes = []
        for name in self.names:
            run(["ip", "netns", "add", name])
            self.enter(name, ["sh", "-c", "echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad"])
        a, b = self.names
        run(["ip", "-n", a, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", b])
        for name, address in zip(self.names, UNDERLAY):
            for command in ("link set lo up", f"addr add {address}/24 dev eth0", "link set eth0 up"):
                run(["ip", "-n", name, *command.split()])

    def enter(self, name, command, **options):
        return run(["ip", "netns", "exec", name, *command], **options)

    def start(self, end, command, **options):
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **options}
        process = subprocess.Popen(["ip", "netns", "exec", self.names[end], *command], **options)
        self.processes.append(process)
        return process

    def on(self, end, command, **options):
        return self.enter(self.names[end], command, **options)

    def remove(self):
        for name in self.names:
            pids = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout.split()
            for pid in pids:
                subprocess.run(["kill", "-9", pid], capture_output=True)
        for process in self.processes:
            process.wait()
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


class WireGuard:
    """A userspace WireGuard of the usual kind: COMMAND INTERFACE, configured with wg(8)."""

    def __init__(self, name, command, hosts, number):
        self.name, self.hosts = name, hosts
        self.pids = []
        keys = []
        interfaces = [f"anb{os.getpid() % 10000}{number}{end}" for end in "ab"]
        for end in (0, 1):
            private = run(["wg", "genkey"])
            keys.append((private, run(["wg", "pubkey"], input=private).strip()))
            self.pids.append(hosts.start(end, [*command, interfaces[end]]).pid)
        for end, interface in enumerate(interfaces):
            wait_for(lambda: os.path.exists(f"/var/run/wireguard/{interface}.sock"), f"{name} does not start")
            other = 1 - end
            with tempfile.NamedTemporaryFile("w") as key:
                key.write(keys[end][0])
                key.flush()
                hosts.on(end, ["wg", "set", interface, "listen-port", "51820", "private-key", key.name, "peer",
                               keys[other][1], "endpoint", f"{UNDERLAY[other]}:51820", "allowed-ips",
                               f"{OVERLAY_V4[other]}/32,{OVERLAY_V6[other]}/128"])
            for command_line in (f"addr add {OVERLAY_V4[end]}/24 dev {interface}",
                                 f"addr add {OVERLAY_V6[end]}/64 dev {interface}",
                                 f"link set {interface} mtu {MTU} up"):
                run(["ip", "-n", hosts.names[end], *command_line.split()])
        self.v4, self.v6 = OVERLAY_V4[1], OVERLAY_V6[1]


class Agentnet:
    def __init__(self, name, program, hosts, directory):
        self.name, self.hosts, self.pids = name, hosts, []
        states = [os.path.join(directory, f"{name}-{end}") for end in "ab"]

        def agent(end, *arguments):
            return hosts.on(end, [program, "--json", "--state-dir", states[end], *arguments], stdin=subprocess.DEVNULL)

        for end in (0, 1):
            self.pids.append(hosts.start(end, [program, "--state-dir", states[end], "daemon", "--port-mapping",
                                               "off"]).pid)
        for end in (0, 1):
            wait_for(lambda: succeeds(lambda: agent(end, "status")), "the agent does not start")
        ticket = json.loads(agent(1, "ticket"))["ticket"]
        agent(0, "trust", "request", ticket)
        own = json.loads(agent(0, "id"))["id"]
        wait_for(lambda: succeeds(lambda: agent(1, "trust", "approve", own)), "no request arrives")
        peer = json.loads(agent(1, "id"))
        self.v6 = peer["ipv6"]

        def path():
            peers = json.loads(agent(0, "status"))["peers"]
            return peers and peers[0]["path"]["kind"] == "direct" and peers[0]
        wait_for(path, "no direct path")
        self.v4 = path()["ipv4"]


def succeeds(action):
    try:
        action()
        return True
    except RuntimeError:
        return False


def wait_for(condition, failure, seconds=15):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(0.05)
    raise RuntimeError(failure)


def tree(pid):
    """A process and its children: `ip netns exec` becomes the program, some programs fork."""
    found = [pid]
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat") as file:
                    fields = file.read().rsplit(")", 1)[1].split()
                if int(fields[1]) == pid:
                    found.append(int(entry))
            except OSError:
                pass
    return found


def cpu_seconds(candidate):
    ticks = 0
    for pid in [one for root in candidate.pids for one in tree(root)]:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def memory_mib(candidate, field):
    def of(pid):
        with open(f"/proc/{pid}/status") as file:
            return int(re.search(rf"{field}:\s+(\d+)", file.read())[1]) / 1024
    return max(of(pid) for root in candidate.pids for pid in tree(root))


def tcp(candidate, address, seconds, streams=1, beside=None):
    hosts = candidate.hosts
    server = hosts.start(1, ["iperf3", "-s", "-1"])
    wait_for(lambda: succeeds(lambda: hosts.on(1, ["sh", "-c", "ss -Hltn sport = :5201 | grep -q ."])), "iperf3")
    before = cpu_seconds(candidate)
    client = subprocess.Popen(
        ["ip", "netns", "exec", hosts.names[0], "iperf3", "-J", "-c", address, "-t", str(seconds), "-P", str(streams)],
        stdout=subprocess.PIPE, text=True)
    seen = beside() if beside else None
    document = json.loads(client.communicate(timeout=seconds + 60)[0])
    spent = cpu_seconds(candidate) - before
    server.wait(timeout=30)
    if "sum_received" not in document["end"]:
        raise RuntimeError(f"iperf3: {document.get('error')}")
    received = document["end"]["sum_received"]["bits_per_second"] / 1e9
    gigabits = document["end"]["sum_received"]["bytes"] * 8 / 1e9
    return received, spent / max(gigabits, 1e-9), seen


def round_trips(candidate, count, interval):
    text = candidate.hosts.on(0, ["ping", "-n", "-c", str(count), "-i", str(interval), candidate.v6])
    times = sorted(float(found) for found in re.findall(r"time=([\d.]+)", text))
    return times[len(times) // 2], times[min(len(times) - 1, len(times) * 99 // 100)]


def udp_passes(candidate, udp_load, rate, size):
    hosts = candidate.hosts
    address = f"[{candidate.v6}]:7000"
    sink = subprocess.Popen(["ip", "netns", "exec", hosts.names[1], udp_load, "sink", address],
                            stdout=subprocess.PIPE, text=True)
    sink.stdout.readline()
    sent = int(hosts.on(0, [udp_load, "source", address, "--rate", str(int(rate)), "--size", str(size), "--seconds",
                            str(PROBE_SECONDS)]))
    received = int(sink.communicate(timeout=30)[0])
    # A source that cannot send so fast shows nothing about that rate.
    return sent >= 0.97 * rate * PROBE_SECONDS and received >= sent * (1 - LOSS), received / PROBE_SECONDS


def highest_rate(candidate, udp_load, size):
    """Doubles until it fails twice, then halves the distance."""
    def passes(rate):
        return any(udp_passes(candidate, udp_load, rate, size)[0] for _ in range(2))
    low, high = 0.0, float(LEAST_RATE)
    while passes(high) and high < 1e8:
        low, high = high, high * 2
    if low == 0:
        return 0.0
    while high / low > PRECISION:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if passes(middle) else (low, middle)
    return low


def measure(candidate, arguments):
    """One turn."""
    figures = {}
    seconds = arguments.seconds
    figures["rtt_idle_ms"], _ = round_trips(candidate, 100, 0.02)
    figures["tcp_v4_gbps"], figures["cpu_s_per_gbit"], _ = tcp(candidate, candidate.v4, seconds)
    figures["tcp_v6_gbps"], _, _ = tcp(candidate, candidate.v6, seconds)
    figures["tcp_v4_4_gbps"], _, _ = tcp(candidate, candidate.v4, seconds, streams=4)

    def under_load():
        time.sleep(0.5)
        return round_trips(candidate, max(20, int((seconds - 1) / 0.02)), 0.02)
    _, _, (figures["rtt_loaded_ms"], figures["rtt_loaded_p99_ms"]) = tcp(candidate, candidate.v6, seconds,
                                                                         beside=under_load)
    for size in UDP_SIZES:
        figures[f"udp_{size}_pps"] = highest_rate(candidate, arguments.udp_load, size)
    figures["memory_loaded_mib"] = memory_mib(candidate, "VmHWM")
    return figures


LABELS = {
    "tcp_v4_gbps": "TCP, one stream, IPv4, Gbit/s",
    "tcp_v6_gbps": "TCP, one stream, IPv6, Gbit/s",
    "tcp_v4_4_gbps": "TCP, four streams, IPv4, Gbit/s",
    "udp_1372_pps": "UDP, 1,372 bytes, datagrams/s",
    "udp_64_pps": "UDP, 64 bytes, datagrams/s",
    "rtt_idle_ms": "round trip, idle, ms",
    "rtt_loaded_ms": "round trip beside a TCP stream, ms",
    "rtt_loaded_p99_ms": "the same, 99th percentile, ms",
    "cpu_s_per_gbit": "CPU of both ends, s/Gbit",
    "memory_idle_mib": "memory, idle, MiB",
    "memory_loaded_mib": "memory, most under load, MiB",
}


def show(value):
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3f}" if value < 1 else f"{value:.2f}"


def table(medians):
    names = list(medians)
    first = names[0]
    head = ["", first] + [cell for name in names[1:] for cell in (name, f"{first} to it")]
    rows = [head]
    for figure, label in LABELS.items():
        own = medians[first][figure]
        row = [label, show(own)]
        for name in names[1:]:
            other = medians[name][figure]
            row += [show(other), f"{own / other:.2f}x" if other else "-"]
        rows.append(row)
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    for row in rows:
        print("  ".join(cell.ljust(width) if column == 0 else cell.rjust(width)
                        for column, (cell, width) in enumerate(zip(row, widths))).rstrip())


def main():
    parser = argparse.ArgumentParser(prog="scripts/bench")
    parser.add_argument("--agentnet", required=True)
    parser.add_argument("--udp-load", required=True)
    parser.add_argument("--boringtun", required=True)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--only", default="")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=COMMAND")
    parser.add_argument("--json", default="bench.json")
    arguments = parser.parse_args()
    others = {
        "wireguard-go": ["env", "WG_PROCESS_FOREGROUND=1", "wireguard-go", "-f"],
        "boringtun-cli": [arguments.boringtun, "--foreground", "--disable-drop-privileges"],
    }
    for peer in arguments.peer:
        name, _, command = peer.partition("=")
        if not command:
            parser.error(f"--peer {peer}: NAME=COMMAND is wanted")
        others[name] = shlex.split(command)
    only = [name for name in arguments.only.split(",") if name]
    names = [name for name in ["agentnet", *others] if not only or name in only]
    unknown = set(only) - {"agentnet", *others}
    if unknown or not names:
        parser.error(f"no such candidate: {', '.join(sorted(unknown))}; there are agentnet, {', '.join(others)}")

    all_hosts, failed = [], None
    with tempfile.TemporaryDirectory() as directory:
        try:
            candidates = []
            for number, name in enumerate(names):
                hosts = Hosts(number)
                all_hosts.append(hosts)
                if name == "agentnet":
                    candidates.append(Agentnet(name, arguments.agentnet, hosts, directory))
                else:
                    candidates.append(WireGuard(name, others[name], hosts, number))
                round_trips(candidates[-1], 3, 0.2)
            # Whoever gives memory back after the start has done so by then.
            time.sleep(REST_SECONDS)
            idle = {candidate.name: memory_mib(candidate, "VmRSS") for candidate in candidates}
            turns = {name: [] for name in names}
            for turn in range(arguments.runs):
                for candidate in candidates:
                    print(f"run {turn + 1} of {arguments.runs}: {candidate.name}", file=sys.stderr, flush=True)
                    turns[candidate.name].append(measure(candidate, arguments))
        except (RuntimeError, subprocess.TimeoutExpired, KeyboardInterrupt) as error:
            failed = error
        finally:
            for hosts in all_hosts:
                hosts.remove()
    if failed is not None:
        print(f"error: {failed or 'interrupted'}", file=sys.stderr)
        return 1
    medians = {}
    for name in names:
        medians[name] = {"memory_idle_mib": idle[name]}
        for figure in turns[name][0]:
            medians[name][figure] = statistics.median(turn[figure] for turn in turns[name])
    with open(arguments.json, "w") as file:
        json.dump({"runs": arguments.runs, "seconds": arguments.seconds, "medians": medians, "turns": turns,
                   "cores": os.cpu_count(), "kernel": os.uname().release}, file, indent=1)
    table(medians)
    print(f"Medians of {arguments.runs} runs, taken in turns; every turn is in {arguments.json}.")
    return 0


sys.exit(main())
