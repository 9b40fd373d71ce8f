# shellcheck shell=bash
# Nodes of the demo as network namespaces, dual stack. Sourced by demo.sh; needs root.

PREFIX=fpdemo

netns() { echo "/run/netns/$PREFIX-$1"; }

# Runs a command inside a node or a pod. Not `ip netns exec`: in its private mount namespace, what a
# daemon pins in bpffs would vanish with it.
in_ns() {
    local name=$1
    shift
    nsenter --net="$(netns "$name")" -- "$@"
}

make_ns() {
    ip netns add "$PREFIX-$1"
    in_ns "$1" sysctl -q -w net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0 \
        net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0
    ip -n "$PREFIX-$1" link set lo up
}

OUTSIDE4=203.0.113.10
OUTSIDE6=2001:db8:0:1::10

# Two nodes and a router on one switch; behind the router is the outside. A veth hands over unfinished checksums, a
# real wire does not.
make_nodes() {
    local node
    make_ns outside
    ip -n "$PREFIX-outside" link add br0 type bridge
    ip -n "$PREFIX-outside" addr add 192.168.77.254/24 dev br0
    ip -n "$PREFIX-outside" addr add fd77::254/64 dev br0 nodad
    ip -n "$PREFIX-outside" addr add "$OUTSIDE4/32" dev lo
    ip -n "$PREFIX-outside" addr add "$OUTSIDE6/128" dev lo nodad
    in_ns outside ethtool -K br0 tx off >/dev/null
    ip -n "$PREFIX-outside" link set br0 up
    for node in a:1 b:2; do
        local name=${node%:*} number=${node#*:}
        make_ns "node-$name"
        ip -n "$PREFIX-node-$name" link add "up-$name" type veth peer name "to-$name" netns "$PREFIX-outside"
        ip -n "$PREFIX-outside" link set "to-$name" master br0 up
        in_ns outside ethtool -K "to-$name" tx off >/dev/null
        ip -n "$PREFIX-node-$name" addr add "192.168.77.$number/24" dev "up-$name"
        ip -n "$PREFIX-node-$name" addr add "fd77::$number/64" dev "up-$name" nodad
        ip -n "$PREFIX-node-$name" link set "up-$name" up
        in_ns "node-$name" ethtool -K "up-$name" tx off >/dev/null
        ip -n "$PREFIX-node-$name" route add default via 192.168.77.254
        ip -n "$PREFIX-node-$name" -6 route add default via fd77::254
    done
}

# Ends what still runs inside a namespace (a shell, an iperf3 started by hand): it would keep the
# namespace, and the veths in it, alive.
end_inside() {
    local _
    ip netns pids "$1" | xargs -r kill 2>/dev/null || true
    for _ in $(seq 20); do
        [ -n "$(ip netns pids "$1")" ] || return 0
        sleep 0.1
    done
    ip netns pids "$1" | xargs -r kill -9 2>/dev/null || true
}

# Removes every namespace of the demo, and what runs there; veths go with them.
remove_nodes() {
    local path
    for path in /run/netns/"$PREFIX"-*; do
        [ -e "$path" ] || continue
        end_inside "${path##*/}"
        ip netns del "${path##*/}"
    done
}
