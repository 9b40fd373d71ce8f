# shellcheck shell=bash
# The demo's objects from a folder of YAML, its pods by hand. Sourced by demo.sh, or cluster.sh in its place: the same
# functions with a real API server and the CNI plugin.

GATEWAY4=169.254.1.1
GATEWAY6=fe80::ecee:eeff:feee:eeee

node_number() { case "$1" in a*) echo 1 ;; *) echo 2 ;; esac; }
pod4() { echo "10.77.$(node_number "$1").1${1:1}"; }
pod6() { echo "fd00:77:$(node_number "$1")::1${1:1}"; }

prepare_source() { :; }

start_source() {
    cp -r configs/demo/manifests "$STATE/manifests"
    cp configs/demo/node-?.toml "$STATE/"
}

# In and out of force: a file of configs/demo.
publish() { cp "configs/demo/$1" "$STATE/manifests/"; }
withdraw() { rm "$STATE/manifests/${1##*/}"; }

new_pods() {
    local pod
    for pod in "$@"; do make_pod "$pod"; done
}

# make_pod NAME: e.g. a1 (on node-a) is 10.77.1.11 and fd00:77:1::11, behind fp-a1.
make_pod() {
    local name=$1 node=${1:0:1}
    make_ns "$name"
    ip -n "$PREFIX-node-$node" link add "fp-$name" mtu 1450 type veth \
        peer name eth0 mtu 1450 netns "$PREFIX-$name"
    ip -n "$PREFIX-node-$node" link set "fp-$name" up
    ip -n "$PREFIX-$name" addr add "$(pod4 "$name")/32" dev eth0
    ip -n "$PREFIX-$name" addr add "$(pod6 "$name")/128" dev eth0 nodad
    ip -n "$PREFIX-$name" link set eth0 up
    ip -n "$PREFIX-$name" route add "$GATEWAY4" dev eth0 scope link
    ip -n "$PREFIX-$name" route add default via "$GATEWAY4" dev eth0
    ip -n "$PREFIX-$name" -6 route add "$GATEWAY6" dev eth0
    ip -n "$PREFIX-$name" -6 route add default via "$GATEWAY6" dev eth0
    in_ns "$name" ethtool -K eth0 tx off >/dev/null
}

# Where a mistake in an object is told; policy.yaml as `explain` names it.
mistake_told() { status_line a '[^ ]*mistake.yaml:.*'; }
# shellcheck disable=SC2034 # used by demo.sh
POLICY_PLACE='[^( ]*policy.yaml:[0-9]+'

try_source() { echo "ls $STATE/manifests          # edit, add or remove a pod, a service, a policy: applied at once"; }
