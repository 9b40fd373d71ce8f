#!/usr/bin/env bash
# Two nodes, seven pods, one daemon per node, on this machine: pods talk, to each other, to a service, to the outside,
# a policy cuts them off, and every step is checked.
#
#   scripts/demo.sh                install what is missing, build, show, remove everything again
#   scripts/demo.sh --kubernetes   the same with a real API server, and pods made by the CNI plugin; the first time
#                                  it builds the API server from Go modules (some ten minutes)
#   scripts/demo.sh --keep         leave it up and print commands to try
#   scripts/demo.sh --down         remove what --keep left, and end what runs inside it
#
# Nodes and pods are network namespaces (fpdemo-*); nothing outside of them is touched. Exits with 1
# when any check fails. Root is needed for namespaces and XDP: as a normal user it builds as you and asks
# sudo for the rest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib/setup.sh
. scripts/lib/setup.sh
# shellcheck source=scripts/lib/nodes.sh
. scripts/lib/nodes.sh

STATE=/run/fastpath-demo
BINARY=$PWD/target/release/fastpath

keep=
action=up
built=
kubernetes=
for argument in "$@"; do
    case "$argument" in
        --keep) keep=yes ;;
        --down) action=down ;;
        --built) built=yes ;;
        --kubernetes) kubernetes=yes ;;
        -h | --help) sed -n '2,13s/^# \{0,1\}//p' scripts/demo.sh && exit 0 ;;
        *) die "unknown argument: $argument (allowed: --kubernetes, --keep, --down, --help)" ;;
    esac
done

# The same functions twice: objects from a folder and pods by hand, or both as in a cluster.
if [ -n "$kubernetes" ]; then
    # shellcheck source=scripts/lib/cluster.sh
    . scripts/lib/cluster.sh
else
    # shellcheck source=scripts/lib/folder.sh
    . scripts/lib/folder.sh
fi

# --- before root --------------------------------------------------------------------------------

if [ "$action" = up ] && [ -z "$built" ]; then
    title "Setting up and building"
    setup
    cargo build --release --quiet -p fastpath-control
    prepare_source
    good "built" "$("$BINARY" version | head -n1)"
fi
if [ "$(id -u)" != 0 ]; then
    arguments=(--built)
    [ -z "$keep" ] || arguments+=(--keep)
    [ "$action" = up ] || arguments+=(--down)
    [ -z "$kubernetes" ] || arguments+=(--kubernetes)
    as_root env ${KUBEBUILDER_ASSETS:+"KUBEBUILDER_ASSETS=$KUBEBUILDER_ASSETS"} \
        "$PWD/scripts/demo.sh" "${arguments[@]}"
    exit
fi

# --- taking down --------------------------------------------------------------------------------

# end_process FILE WORD [SIGNAL]: ends the process whose id is in a file, if it still is what it was.
end_process() {
    local pid
    pid=$(cat "$1")
    [ -e "/proc/$pid/exe" ] && grep -qa "$2" "/proc/$pid/cmdline" || return 0
    kill -s "${3:-TERM}" "$pid"
    for _ in $(seq 100); do
        # What has ended and only waits for its parent has no program any more.
        [ -e "/proc/$pid/exe" ] || return 0
        sleep 0.1
    done
    kill -9 "$pid" || true
}

take_down() {
    local file
    for file in "$STATE"/*.pid; do
        [ -e "$file" ] || continue
        end_process "$file" "$(basename "$file" .pid | sed 's/-.*//')"
    done
    for file in "$STATE"/*.killed; do
        [ ! -e "$file" ] || end_process "$file" "$(basename "$file" .killed)" KILL
    done
    # Whatever this run has in the background and inside a namespace: it would keep the namespace alive.
    jobs -p | xargs -r kill 2>/dev/null || true
    remove_nodes
    # What a killed daemon leaves pinned.
    for file in "$STATE"/pin_dir.*; do
        [ -e "$file" ] || continue
        rm -rf "$(cat "$file")"
    done
    [ ! -e "$STATE/mounted-bpffs" ] || umount /sys/fs/bpf || true
    rm -rf "$STATE"
}

leftovers() {
    ls -d "$STATE" /run/netns/"$PREFIX"-* 2>/dev/null || true
    ps -eo pid=,args= | awk -v b="$BINARY" -v s="$STATE/" '$2 == b || ($2 ~ /etcd$|kube-[a-z-]+$/ && index($0, s))' || true
}

if [ "$action" = down ]; then
    take_down
    note "removed"
    exit
fi

# --- helpers of the steps -----------------------------------------------------------------------

# check TEXT COMMAND…: one line; the last line of the command's output is what was seen.
check() {
    local text=$1 output code
    shift
    # Not as a condition: bash would go on after a failure inside the command.
    set +e
    output=$(
        set -e
        "$@" 2>&1
    )
    code=$?
    set -e
    if [ "$code" = 0 ]; then
        good "$text" "$(tail -n1 <<<"$output")"
    else
        bad "$text" "$(tail -n3 <<<"$output" | tr '\n' ' ')"
    fi
}

fp() {
    local node=$1
    shift
    "$BINARY" --state-dir "$STATE/$node" "$@"
}

# within SECONDS COMMAND…: waits that long for a command to succeed.
within() {
    local end=$((SECONDS + $1))
    shift
    while [ "$SECONDS" -lt "$end" ]; do
        "$@" >/dev/null 2>&1 && return
        sleep 0.1
    done
    "$@"
}

soon() { within 10 "$@"; }

# As `soon`, and shows what the command says.
seen() { soon "$@" >/dev/null && "$@"; }

# status_line NODE PATTERN: what of `status` matches, whether the daemon is well or not.
status_line() { { fp "$1" status 2>&1 || true; } | grep -oE "$2"; }

# `status` ends with 1 while anything is degraded; readiness alone is asked here.
is_ready() {
    local status
    status=$(fp "$1" status -o json) || true
    grep -Eq '"ready": ?true' <<<"$status"
}

start_daemon() {
    local node=$1 pid
    setsid nsenter --net="$(netns "node-$node")" -- "$BINARY" run --config "$STATE/node-$node.toml" \
        >"$STATE/$node.log" 2>&1 </dev/null &
    pid=$!
    echo "$pid" >"$STATE/fastpath-$node.pid"
    sed -nE 's/^pin_dir *= *"(.*)"/\1/p' "$STATE/node-$node.toml" >"$STATE/pin_dir.$node"
    soon is_ready "$node" || {
        tail -n 20 "$STATE/$node.log"
        return 1
    }
    fp "$node" show ports -o json | sed -nE 's/.*"mode": ?"([a-z-]+)".*/\1/p' | sort | uniq -c |
        awk '{ printf "%s%d ports in %s mode", s, $1, $2; s = ", " } END { print "" }'
}

# ping POD ADDRESS: three times, all answered.
pings() {
    soon in_ns "$1" ping -c1 -W1 "$2" || return
    in_ns "$1" ping -c3 -i0.1 -W1 "$2" | sed -nE 's/^rtt.* = [0-9.]*\/([0-9.]*)\/.*/3 of 3 answered, \1 ms/p' | grep .
}

hops() { in_ns "$1" traceroute -n -q1 -w2 -m5 "$2" | awk 'NR > 1 { printf "%s%s", s, $2; s = " → " } END { print "" }'; }
traces() {
    local path
    path=$(hops "$1" "$2")
    echo "$path"
    [[ $path == *"$2" && $path != *'*'* ]]
}

# throughput FROM TO ADDRESS [iperf3 options…]: three seconds of TCP.
throughput() {
    local from=$1 to=$2 address=$3 server gbits
    shift 3
    in_ns "$to" iperf3 -s -1 >/dev/null 2>&1 &
    server=$!
    sleep 0.3
    gbits=$(in_ns "$from" iperf3 -c "$address" -t3 -f g "$@" | awk '/receiver/ { print $(NF-2), $(NF-1) }') || true
    kill "$server" 2>/dev/null || true
    wait "$server" 2>/dev/null || true
    echo "$gbits"
    awk '{ exit !($1 > 0) }' <<<"$gbits"
}

add_pod_live() {
    publish live/a4.yaml
    new_pods a4 || return
    soon in_ns b1 ping -c1 -W1 "$(pod4 a4)"
}

# A pod is added while two others talk; the two must not notice.
add_pod_under_traffic() {
    in_ns a1 ping -q -i0.01 -c400 -W1 "$(pod4 b1)" >"$STATE/ping.txt" &
    local pinger=$!
    sleep 0.5
    add_pod_live
    wait "$pinger"
    grep -oE '400 packets transmitted, 400 received, 0% packet loss' "$STATE/ping.txt"
}

# serve PLACE PORT COMMAND: runs the command for each connection, IPv4 and IPv6, until the demo ends.
serve() {
    in_ns "$1" socat "TCP4-LISTEN:$2,reuseaddr,fork" "SYSTEM:$3" >/dev/null 2>&1 &
    in_ns "$1" socat "TCP6-LISTEN:$2,ipv6only=1,reuseaddr,fork" "SYSTEM:$3" >/dev/null 2>&1 &
}

# ask PLACE ADDRESS PORT: what a server answers.
ask() {
    local address=$2
    [[ $address != *:* ]] || address="[$address]"
    in_ns "$1" timeout 3 socat -u "TCP:$address:$3,connect-timeout=2" -
}

# shares PLACE ADDRESS PORT: 40 connections, who answered how often; both backends must have.
shares() {
    local counts
    soon ask "$1" "$2" "$3" >/dev/null
    counts=$(for _ in $(seq 40); do ask "$1" "$2" "$3"; done | sort | uniq -c)
    awk '{ printf "%s%s %d of 40", s, $2, $1; s = ", " } END { print "" }' <<<"$counts"
    [ "$(wc -l <<<"$counts")" = 2 ] && awk '{ n += $1 } END { exit n != 40 }' <<<"$counts"
}

# leaves_as ADDRESS SOURCE: who the outside sees when a1 connects.
leaves_as() {
    local seen
    soon ask a1 "$1" 8080 >/dev/null
    seen=$(ask a1 "$1" 8080)
    echo "the outside sees $seen"
    [[ $seen == *"$2"* ]]
}

# The rates of the stream's seconds, in Mbit/s.
rates() { sed -nE 's/.*sec .*Bytes +([0-9.]+) Mbits\/sec.*/\1/p' "$STATE/stream.txt"; }

start_stream() {
    in_ns b3 iperf3 -s -1 >/dev/null 2>&1 &
    sleep 0.3
    in_ns a2 iperf3 -c "$(pod4 b3)" -t14 -i1 -f m --forceflush >"$STATE/stream.txt" 2>&1 &
    echo $! >"$STATE/iperf3-stream.pid"
    soon grep -q sec "$STATE/stream.txt"
    rates | tail -n1 | sed 's/$/ Mbit\/s/'
}

rate_is_zero() { [ "$(rates | tail -n1)" = 0.00 ]; }
rate_is_not_zero() { ! rate_is_zero; }

is_cut() {
    publish live/policy.yaml
    soon rate_is_zero
    echo "0 Mbit/s"
}

is_refused() {
    if in_ns "$1" ping -c2 -i0.2 -W1 "$2" >/dev/null; then
        echo "answered!"
        return 1
    fi
    echo "no answer"
}

explained() {
    local answer
    answer=$(fp b explain --from demo/a2 --to demo/b3 --proto tcp --dport 5201) || true
    grep -E 'db-from-web' <<<"$answer" | grep -oE "$POLICY_PLACE" | head -n1
    grep -q 'isolated' <<<"$answer"
}

drop_names_policy() { fp b show drops | grep -F 'db-from-web'; }

goes_on() {
    withdraw live/policy.yaml
    soon rate_is_not_zero
    rates | tail -n1 | sed 's/$/ Mbit\/s/'
    kill "$(cat "$STATE/iperf3-stream.pid")" 2>/dev/null || true
}

# Drop counter of node a by name.
drop_count() { fp a show drops --all | awk -v reason="$1" '$1 == reason { print $2 }'; }

spoof() {
    local before after
    before=$(drop_count source_not_own)
    ip -n "$PREFIX-a1" addr add 10.77.1.99/32 dev eth0
    if in_ns a1 ping -c3 -i0.1 -W1 -I 10.77.1.99 "$(pod4 b1)" >/dev/null; then
        echo "answered!"
        return 1
    fi
    ip -n "$PREFIX-a1" addr del 10.77.1.99/32 dev eth0
    after=$(drop_count source_not_own)
    echo "source_not_own: $before, then $after"
    [ "$after" -ge $((before + 3)) ]
}

mistake_is_told() {
    publish wrong/mistake.yaml >/dev/null
    seen mistake_told || return
    withdraw wrong/mistake.yaml >/dev/null 2>&1
}

metric() { in_ns node-a curl -sSf -m5 http://127.0.0.1:9990/metrics | grep -F "$1"; }

# --- the demo -----------------------------------------------------------------------------------

end() {
    local code=$?
    if [ -z "$keep" ] || [ "$code" -gt 1 ]; then
        take_down
    fi
    exit "$code"
}
trap end EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

take_down
mkdir -p "$STATE"
if ! mountpoint -q /sys/fs/bpf; then
    mount -t bpf bpf /sys/fs/bpf
    touch "$STATE/mounted-bpffs"
fi

if [ -n "$kubernetes" ]; then
    title "A control plane, and two nodes with a daemon each"
else
    title "Two nodes, three pods each, a daemon per node"
fi
make_nodes
good "namespaces and veths made" "node-a: 192.168.77.1 fd77::1, node-b: 192.168.77.2 fd77::2"
start_source
[ -n "$kubernetes" ] || new_pods a1 a2 a3 b1 b2 b3
for node in a b; do
    [ "$failed" != 0 ] || check "node-$node: daemon ready, XDP attached" start_daemon "$node"
done
if [ -n "$kubernetes" ] && [ "$failed" = 0 ]; then
    check "both daemons follow the API" both_connected
    check "six pods by kubectl and CNI ADD" first_pods a1 a2 a3 b1 b2 b3
fi
if [ "$failed" != 0 ]; then
    tail -n 20 "$STATE"/?.log 2>/dev/null || true
    printf '\nWithout nodes and pods there is nothing to show.\n'
    exit 1
fi

title "Pod to pod on one node"
check "a1 → a2, IPv4" pings a1 "$(pod4 a2)"
check "a1 → a2, IPv6" pings a1 "$(pod6 a2)"

title "Pod to pod across VXLAN"
check "a1 → b1, IPv4" pings a1 "$(pod4 b1)"
check "a1 → b1, IPv6" pings a1 "$(pod6 b1)"
check "b3 → a2, IPv4" pings b3 "$(pod4 a2)"
check "the hops answer: a1 → b1, IPv4" traces a1 "$(pod4 b1)"
check "the hops answer: a1 → b1, IPv6" traces a1 "$(pod6 b1)"

title "A pod added live"
check "a4 added, and a1 → b1 loses no packet meanwhile" add_pod_under_traffic
check "b1 → a4, IPv4" pings b1 "$(pod4 a4)"
check "a4 → b2, IPv6" pings a4 "$(pod6 b2)"

title "The node's own processes to pods: a kubelet's probes"
check "node-a → a1, IPv4" pings node-a "$(pod4 a1)"
check "node-a → a1, IPv6" pings node-a "$(pod6 a1)"
check "node-a → b1, on the other node" pings node-a "$(pod4 b1)"
check "b2 → node-a" pings b2 192.168.77.1

if [ -z "$kubernetes" ]; then
    title "Throughput (iperf3, TCP, 3 s)"
    check "a1 → a2, one node" throughput a1 a2 "$(pod4 a2)"
    check "a1 → b1, VXLAN, IPv4" throughput a1 b1 "$(pod4 b1)"
    check "a1 → b1, VXLAN, IPv6" throughput a1 b1 "$(pod6 b1)"
    check "b2 → a2, VXLAN, 4 streams" throughput b2 a2 "$(pod4 a2)" -P4
fi

title "A service: api, with a2 and b2 behind it"
for pod in a2 b2; do serve "$pod" 8080 "echo $pod"; done
[ -z "$kubernetes" ] || check "EndpointSlices are the controller's" seen slices_made
check "a probe of node-a: TCP to a2" seen ask node-a "$(pod4 a2)" 8080
check "a1 → ClusterIP 10.96.0.10:80" shares a1 10.96.0.10 80
check "a1 → ClusterIP [fd00:96::10]:80" shares a1 fd00:96::10 80
check "outside → NodePort 192.168.77.1:30080" shares outside 192.168.77.1 30080
check "outside → NodePort [fd77::2]:30080" shares outside fd77::2 30080
check "node-a → ClusterIP 10.96.0.10:80" shares node-a 10.96.0.10 80
check "outside → hostPort 192.168.77.2:8088, which is b2" seen ask outside 192.168.77.2 8088

if [ -n "$kubernetes" ]; then
    title "The API itself is a service: kubernetes, behind it the control plane"
    kubectl -n demo create token default >"$CLUSTER/pod-token"
    check "a1 → https://10.96.0.1" asks_api a1 10.96.0.1
    check "node-b → https://10.96.0.1" asks_api node-b 10.96.0.1

    title "The API server is killed"
    check "status says so" stop_apiserver
    check "a1 → b1, IPv4" pings a1 "$(pod4 b1)"
    check "a1 → b1, IPv6" pings a1 "$(pod6 b1)"
    check "a1 → ClusterIP 10.96.0.10:80" shares a1 10.96.0.10 80
    check "started again: both daemons are connected" apiserver_is_back
fi

title "To the outside, by the node's address"
serve outside 8080 "echo \$SOCAT_PEERADDR"
check "a1 → $OUTSIDE4" leaves_as "$OUTSIDE4" 192.168.77.1
check "a1 → $OUTSIDE6" leaves_as "$OUTSIDE6" "fd77:0000:0000:0000:0000:0000:0000:0001"

title "A NetworkPolicy, live: only web pods (a1) may connect to db pods (b3)"
check "a2 → b3: an iperf3 stream runs" start_stream
check "the policy is added: the stream is cut" is_cut
check "a2 → b3: nothing new either" is_refused a2 "$(pod4 b3)"
check "a1 → b3: allowed" pings a1 "$(pod4 b3)"
check "explain names it" explained
check "show drops names the policy" drop_names_policy
check "the policy is taken away: the stream goes on" goes_on

title "What is not allowed is dropped by name"
check "a1 sends from an address that is not its own" spoof

title "What cannot be honoured is told"
check "a node with no MAC address where one should be" mistake_is_told

title "Health and metrics, node-a"
check "/readyz" in_ns node-a curl -sSf -m5 http://127.0.0.1:9990/readyz
check "/metrics" metric 'fastpath_drops_total{reason="source_not_own"}'
title "fastpath doctor, node-a"
in_ns node-a "$BINARY" doctor --config "$STATE/node-a.toml" || true

title "fastpath show runtime, node-a"
fp a show runtime
title "fastpath show drops, node-a"
fp a show drops
title "fastpath show services, node-a"
fp a show services

if [ -n "$kubernetes" ] && [ -z "$keep" ]; then
    title "Pods deleted"
    check "CNI DEL of all seven" delete_pods a1 a2 a3 a4 b1 b2 b3
fi

if [ -n "$keep" ]; then
    title "It stays up. Try (as root):"
    sed 's/^/  /' <<END
fp="$BINARY --state-dir $STATE/a"
\$fp status; \$fp show endpoints; \$fp show flows; \$fp show ports; \$fp show neighbors
nsenter --net=$(netns a1) ping $(pod4 b1)
nsenter --net=$(netns a1) traceroute -n $(pod6 b1)
nsenter --net=$(netns b1) iperf3 -s &  nsenter --net=$(netns a1) iperf3 -c $(pod4 b1)
\$fp explain --from demo/a1 --to demo/svc/api --proto tcp --dport 80
$(try_source)
tail -f $STATE/a.log
scripts/demo.sh --down                     # remove it all
END
else
    title "Taking down"
    take_down
    check "nothing is left" test -z "$(leftovers)"
fi

printf '\n%d checks passed, %d failed\n' "$passed" "$failed"
[ "$failed" = 0 ]
