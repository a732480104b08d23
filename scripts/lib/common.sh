# Shared by the scripts of this directory; sourced, never run.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
export PATH="$PATH:/usr/sbin:/sbin:$HOME/.cargo/bin"

say() { printf '%s\n' "$*"; }

die() {
    printf 'error: %s\n' "$1" >&2
    [ $# -lt 2 ] || printf 'hint: %s\n' "$2" >&2
    exit 1
}

need_root() {
    [ "$(id -u)" = 0 ] || die "$1 needs root: it makes network namespaces" "run it with sudo"
}

need_cargo() {
    command -v cargo >/dev/null || die "cargo is not in PATH" "install Rust from https://rustup.rs, or keep PATH with sudo --preserve-env=PATH"
}

# Installs the Debian packages whose program or file is missing: PACKAGE=PROGRAM or PACKAGE=/path/to/file.
install_missing() {
    local entry missing=()
    for entry in "$@"; do
        case "${entry#*=}" in
            /*) [ -e "${entry#*=}" ] || missing+=("${entry%%=*}") ;;
            *) command -v "${entry#*=}" >/dev/null || missing+=("${entry%%=*}") ;;
        esac
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    command -v apt-get >/dev/null || die "missing: ${missing[*]}" "install them with this system's package manager"
    say "installing ${missing[*]}"
    local log
    log=$(mktemp)
    # Services of packages must not start here: sshd is run by hand, on overlay addresses only.
    if ! { apt-get -qq update && DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
        apt-get -qq install -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
        tail -20 "$log" >&2
        rm -f "$log"
        die "apt-get could not install ${missing[*]}"
    fi
    rm -f "$log"
}

packages=(iproute2=ip iputils-ping=ping curl=curl openssh-server=sshd openssh-client=ssh python3=/usr/bin/python3
    python3-grpcio=/usr/lib/python3/dist-packages/grpc iperf3=iperf3 tcpdump=tcpdump procps=ps nftables=nft tmux=tmux)
# What tests/lab cannot do without.
lab_packages=("${packages[@]}" miniupnpd-nftables=miniupnpd strace=strace gcc=gcc)

# wait_for SECONDS COMMAND...: until the command succeeds.
wait_for() {
    local end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$end" ] || return 1
        sleep 0.1
    done
}

# Two namespaces joined by a veth pair, which never shows up in the machine's own namespace.
make_hosts() { # NETNS_A NETNS_B
    local number=1 ns
    ip netns add "$1"
    ip netns add "$2"
    for ns in "$1" "$2"; do
        ip netns exec "$ns" sh -c 'echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad'
    done
    ip -n "$1" link add eth0 type veth peer name eth0 netns "$2"
    for ns in "$1" "$2"; do
        ip -n "$ns" link set lo up
        ip -n "$ns" addr add "10.77.0.$number/24" dev eth0
        ip -n "$ns" addr add "fd77::$number/64" dev eth0 nodad
        ip -n "$ns" link set eth0 up
        number=$((number + 1))
    done
}

# An internet with a home behind a NAT on each side, and no way out:
#
#   HOME_A 192.168.1.10 -- HOME_A-nat 203.0.113.11 --+
#                                                    +-- NET 203.0.113.1
#   HOME_B 192.168.1.10 -- HOME_B-nat 203.0.113.12 --+
#
# A NAT lets in only what answers a datagram from inside, by address and port, as home routers do.
make_homes() { # NETNS_NET NETNS_A NETNS_B
    local net=$1 number=11 home
    shift
    ip netns add "$net"
    ip -n "$net" link set lo up
    ip -n "$net" link add br0 type bridge
    ip -n "$net" addr add 203.0.113.1/24 dev br0
    ip -n "$net" link set br0 up
    for home in "$@"; do
        ip netns add "$home-nat"
        ip netns add "$home"
        ip -n "$home-nat" link add wan type veth peer name "p$number" netns "$net"
        ip -n "$home-nat" link add lan type veth peer name eth0 netns "$home"
        ip -n "$net" link set "p$number" master br0 up
        ip -n "$home-nat" addr add "203.0.113.$number/24" dev wan
        ip -n "$home-nat" addr add 192.168.1.1/24 dev lan
        ip -n "$home" addr add 192.168.1.10/24 dev eth0
        ip -n "$home-nat" link set wan up
        ip -n "$home-nat" link set lan up
        ip -n "$home" link set lo up
        ip -n "$home" link set eth0 up
        ip -n "$home" route add default via 192.168.1.1
        ip netns exec "$home-nat" sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward'
        ip netns exec "$home-nat" nft -f - <<'EOF'
table ip nat {
    chain prerouting { type nat hook prerouting priority dstnat; }
    chain postrouting { type nat hook postrouting priority srcnat; oifname wan masquerade; }
}
table ip filter {
    chain input {
        type filter hook input priority filter; policy accept;
        iifname wan ct state new drop
    }
    chain forward {
        type filter hook forward priority filter; policy drop;
        iifname lan accept
        ct state established,related accept
    }
}
EOF
        number=$((number + 1))
    done
}

# Ends what runs inside a namespace, then removes it.
remove_host() { # NETNS
    local pids
    pids=$(ip netns pids "$1" 2>/dev/null) || return 0
    # shellcheck disable=SC2086 # one word per process
    [ -z "$pids" ] || kill -9 $pids 2>/dev/null || true
    ip netns del "$1" 2>/dev/null || true
}

# field NAME: a string or number of the JSON document on standard input.
field() {
    /usr/bin/python3 -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"
}

# peer_field ID NAME: a field of one peer in the `status` document on standard input; fails when it is not there.
peer_field() {
    /usr/bin/python3 -c 'import json, sys
found = [peer for peer in json.load(sys.stdin)["peers"] if peer["id"] == sys.argv[1]]
sys.exit(1) if not found or found[0][sys.argv[2]] is None else print(found[0][sys.argv[2]])' "$1" "$2"
}
