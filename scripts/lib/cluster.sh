# shellcheck shell=bash
# The demo's objects from a real API server, its pods by the CNI plugin. Sourced by demo.sh in place of folder.sh, with the
# same functions. The control plane (etcd, kube-apiserver, kube-controller-manager) runs in the namespace `outside`,
# on an address that the nodes reach by their uplinks; there is no kubelet: what it would do is done here.

# shellcheck source=scripts/lib/kube.sh
. "$(dirname "${BASH_SOURCE[0]}")/kube.sh"

CLUSTER=$STATE/cluster
API_ADDRESS=192.168.77.254
API=https://$API_ADDRESS:6443
SERVICE_NETWORKS=10.96.0.0/16,fd00:96::/112
CONTROLLERS=endpointslice-controller,serviceaccount-controller,namespace-controller

# As the user who builds: the programs.
prepare_source() {
    if [ -n "${KUBEBUILDER_ASSETS-}" ] && [ ! -x "$KUBEBUILDER_ASSETS/kube-controller-manager" ]; then
        note "KUBEBUILDER_ASSETS has no kube-controller-manager: taking our own build"
        unset KUBEBUILDER_ASSETS
    fi
    provide_kube
}

kube_program() { echo "${KUBEBUILDER_ASSETS:-$PWD/$KUBE_DIR/bin}/$1"; }

kubectl() {
    in_ns outside "$(kube_program kubectl)" --kubeconfig="$CLUSTER/admin.kubeconfig" --cache-dir="$CLUSTER/cache" "$@"
}

# --- control plane ------------------------------------------------------------------------------

make_keys() (
    cd "$CLUSTER"
    new_key=(-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes)
    openssl req -x509 "${new_key[@]}" -days 30 -subj /CN=demo-ca -addext keyUsage=critical,keyCertSign,cRLSign \
        -keyout ca.key -out ca.crt
    openssl req -new "${new_key[@]}" -subj /CN=kube-apiserver -keyout server.key -out server.csr
    printf '%s\n' "extendedKeyUsage=serverAuth" \
        "subjectAltName=IP:$API_ADDRESS,IP:10.96.0.1,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc" >server.ext
    openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -extfile server.ext -out server.crt
    openssl ecparam -name prime256v1 -genkey -noout -out sa.key
    openssl ec -in sa.key -pubout -out sa.pub
) >/dev/null 2>"$CLUSTER/openssl.log"

# write_kubeconfig NAME TOKEN
write_kubeconfig() {
    cat >"$CLUSTER/$1.kubeconfig" <<END
{"apiVersion": "v1", "kind": "Config", "current-context": "demo",
 "clusters": [{"name": "demo", "cluster": {"server": "$API", "certificate-authority": "$CLUSTER/ca.crt"}}],
 "users": [{"name": "$1", "user": {"token": "$2"}}],
 "contexts": [{"name": "demo", "context": {"cluster": "demo", "user": "$1"}}]}
END
}

# start_program NAME ARGUMENT…: its log and its process id are where the demo keeps them. Killed when that ends: on a
# signal it would wait for clients to go.
start_program() {
    local name=$1
    shift
    setsid nsenter --net="$(netns outside)" -- "$(kube_program "$name")" "$@" >>"$CLUSTER/$name.log" 2>&1 </dev/null &
    echo $! >"$STATE/$name.killed"
}

start_etcd() {
    start_program etcd --name=demo --data-dir="$CLUSTER/etcd" --unsafe-no-fsync --log-level=warn \
        --listen-client-urls=http://127.0.0.1:2379 --advertise-client-urls=http://127.0.0.1:2379 \
        --listen-peer-urls=http://127.0.0.1:2380 --initial-advertise-peer-urls=http://127.0.0.1:2380 \
        --initial-cluster=demo=http://127.0.0.1:2380
}

start_apiserver() {
    start_program kube-apiserver --etcd-servers=http://127.0.0.1:2379 \
        --bind-address="$API_ADDRESS" --advertise-address="$API_ADDRESS" --secure-port=6443 --cert-dir="$CLUSTER" \
        --tls-cert-file="$CLUSTER/server.crt" --tls-private-key-file="$CLUSTER/server.key" \
        --token-auth-file="$CLUSTER/tokens.csv" --authorization-mode=Node,RBAC --allow-privileged=true \
        --service-account-issuer=https://kubernetes.default.svc --service-account-key-file="$CLUSTER/sa.pub" \
        --service-account-signing-key-file="$CLUSTER/sa.key" --service-cluster-ip-range="$SERVICE_NETWORKS"
    until kubectl get --raw /readyz >/dev/null 2>&1; do
        [ -e "/proc/$(cat "$STATE/kube-apiserver.killed")/exe" ] || {
            tail -n3 "$CLUSTER/etcd.log" "$CLUSTER/kube-apiserver.log"
            return 1
        }
        sleep 0.2
    done
}

stop_apiserver() {
    end_process "$STATE/kube-apiserver.killed" kube-apiserver KILL
    within 30 status_line a 'kubernetes, away for.*' >/dev/null
    status_line a 'kubernetes, away for.*'
}

both_connected() {
    within 60 status_line a 'kubernetes, connected.*' >/dev/null
    within 60 status_line b 'kubernetes, connected.*' >/dev/null
    status_line a 'kubernetes, connected.*'
}

apiserver_is_back() {
    start_apiserver
    both_connected
}

start_controllers() {
    start_program kube-controller-manager --bind-address=127.0.0.1 --cert-dir="$CLUSTER" \
        --kubeconfig="$CLUSTER/admin.kubeconfig" --leader-elect=false --controllers="$CONTROLLERS" \
        --use-service-account-credentials=false
}

control_plane() {
    local token
    umask 077
    mkdir "$CLUSTER"
    make_keys
    token=$(openssl rand -hex 16)
    echo "$token,admin,admin,system:masters" >"$CLUSTER/tokens.csv"
    write_kubeconfig admin "$token"
    start_etcd
    start_apiserver
    start_controllers
    echo "Kubernetes $(kubectl version -o json | sed -nE 's/.*"gitVersion": "([^"]*)".*/\1/p' | tail -n1) at $API"
}

# The daemons' rights are those of configs/k8s/install.yaml, nothing else.
install_account() {
    kubectl apply -f configs/k8s/install.yaml
    write_kubeconfig fastpath "$(kubectl -n fastpath-system create token fastpath --duration=24h)"
    echo "system:serviceaccount:fastpath-system:fastpath"
}

# Nodes, namespaces and services; EndpointSlices are the controller's. Pods are let in when their namespace has its account.
register() {
    local file
    for file in nodes namespaces services; do
        kubectl apply -f "configs/demo/manifests/$file.yaml"
    done
    within 60 kubectl -n demo get serviceaccount default >/dev/null
    kubectl get nodes -o jsonpath='{range .items[*]}{.metadata.name} {.spec.podCIDRs} {end}'
}

install_plugin() {
    local node
    for node in a b; do
        mkdir -p "$CLUSTER"/{bin,"conf-$node","net.d-$node"}
        sed -e "s#/run/fastpath#$STATE/$node#; s#/var/lib/fastpath#$STATE/$node/data#" configs/cni/10-fastpath.conflist \
            >"$CLUSTER/conf-$node/10-fastpath.conflist"
        "$BINARY" install-cni --bin-dir "$CLUSTER/bin" --conf-dir "$CLUSTER/net.d-$node" \
            --conflist "$CLUSTER/conf-$node/10-fastpath.conflist"
        # A plugin is given its own part of the list, with version and name.
        {
            echo '{ "cniVersion": "1.1.0", "name": "fastpath",'
            sed -n '/"type": "fastpath-cni"/,/"ipam"/p' "$CLUSTER/net.d-$node/10-fastpath.conflist"
            echo '}'
        } >"$CLUSTER/net-$node.json"
    done
}

start_source() {
    local node
    check "etcd, kube-apiserver and kube-controller-manager run" control_plane
    check "the daemons' service account, by configs/k8s/install.yaml" install_account
    check "nodes registered, a namespace and a service made" register
    check "the CNI plugin is installed" install_plugin
    for node in a b; do
        sed "s#^path = .*#kind = \"kubernetes\"\nkubeconfig = \"$CLUSTER/fastpath.kubeconfig\"#" "configs/demo/node-$node.toml" \
            >"$STATE/node-$node.toml"
    done
}

# --- objects and pods ---------------------------------------------------------------------------

# A Pod has no device yet, and the API server lets no status in.
publish() { sed '/^  annotations:$/{N;/fastpath.io\/interface:/d}' "configs/demo/$1" | kubectl apply -f -; }
withdraw() { kubectl delete --force --grace-period=0 -f "configs/demo/$1"; }

addresses() { sed -nE 's/.*"address": "([^/"]*)\/.*/\1/p' "$CLUSTER/result.$1"; }
pod4() { addresses "$1" | grep -v :; }
pod6() { addresses "$1" | grep :; }

# cni VERB POD: the plugin as a container runtime calls it.
cni() {
    local node=${2:0:1}
    in_ns "node-$node" env CNI_COMMAND="$1" CNI_CONTAINERID="$(sha256sum <<<"$2" | cut -c1-64)" CNI_NETNS="$(netns "$2")" \
        CNI_IFNAME=eth0 CNI_PATH="$CLUSTER/bin" \
        CNI_ARGS="IgnoreUnknown=1;K8S_POD_NAMESPACE=demo;K8S_POD_NAME=$2;K8S_POD_UID=$(cat "$CLUSTER/uid.$2")" \
        "$CLUSTER/bin/fastpath-cni" <"$CLUSTER/net-$node.json"
}

# What a kubelet does: a namespace, ADD, then the addresses of the result into the Pod's status.
run_pod() {
    local pod=$1 begin end host
    kubectl -n demo get pod "$pod" -o jsonpath='{.metadata.uid}' >"$CLUSTER/uid.$pod"
    make_ns "$pod"
    begin=${EPOCHREALTIME/[.,]/}
    cni ADD "$pod" >"$CLUSTER/result.$pod" || {
        cat "$CLUSTER/result.$pod"
        return 1
    }
    end=${EPOCHREALTIME/[.,]/}
    echo $(((end - begin) / 1000)) >"$CLUSTER/milliseconds.$pod"
    host=$(kubectl get node "node-${pod:0:1}" -o jsonpath='{.status.addresses[1].address}')
    kubectl -n demo patch pod "$pod" --subresource=status --type=merge -p "{\"status\": {
        \"phase\": \"Running\", \"hostIP\": \"$host\", \"hostIPs\": [{\"ip\": \"$host\"}],
        \"podIP\": \"$(pod4 "$pod")\", \"podIPs\": [{\"ip\": \"$(pod4 "$pod")\"}, {\"ip\": \"$(pod6 "$pod")\"}],
        \"conditions\": [{\"type\": \"Ready\", \"status\": \"True\"}]}}"
}

new_pods() {
    local pod
    for pod in "$@"; do run_pod "$pod" || return; done
}

first_pods() {
    publish manifests/pods-a.yaml
    publish manifests/pods-b.yaml
    new_pods "$@"
    cat "$CLUSTER"/milliseconds.* | sort -n |
        awk 'NR == 1 { low = $1 } { high = $1 } END { printf "%d pods, an ADD took %d to %d ms\n", NR, low, high }'
}

# Whether the answer of a server of the API is seen: from PLACE, at ADDRESS.
asks_api() {
    soon in_ns "$1" curl -sSf -m2 --cacert "$CLUSTER/ca.crt" -H "Authorization: Bearer $(cat "$CLUSTER/pod-token")" "https://$2/version"
    in_ns "$1" curl -sSf -m2 --cacert "$CLUSTER/ca.crt" -H "Authorization: Bearer $(cat "$CLUSTER/pod-token")" "https://$2/version" |
        sed -nE 's/.*"gitVersion": "([^"]*)".*/kube-apiserver \1/p' | grep .
}

slices_made() {
    local count
    count=$(kubectl -n demo get endpointslices -l kubernetes.io/service-name=api \
        -o jsonpath='{range .items[*]}{.addressType} {.endpoints[*].addresses[0]} {"\n"}{end}')
    sort <<<"$count" | awk '{ printf "%s%s %s %s", s, $1, $2, $3; s = ", " } END { print "" }'
    [ "$(wc -w <<<"$count")" = 6 ]
}

mistake_told() {
    kubectl -n default get events --field-selector=reason=NotInForce -o jsonpath='{range .items[*]}{.reason}: {.message}{"\n"}{end}' |
        grep -F fastpath.io/vtep-mac
}
# shellcheck disable=SC2034 # used by demo.sh
POLICY_PLACE='policy demo/db-from-web'

# Pods deleted as a kubelet does it; then nothing of them may be left on a node.
delete_pods() {
    local pod left
    for pod in "$@"; do
        end_inside "$PREFIX-$pod"
        cni DEL "$pod"
        ip netns del "$PREFIX-$pod"
    done
    kubectl -n demo delete pods --all --force --grace-period=0 >/dev/null 2>&1
    soon no_endpoints
    left=$(
        for node in a b; do
            ip -n "$PREFIX-node-$node" -br link show type veth | grep -vE '^(up-|fp-host)' || true
            find "$STATE/$node/data/endpoints" -type f -name '*.json'
            grep -F '"container' "$STATE/$node/data/ipam.json" || true
        done
    )
    [ -z "$left" ] && echo "no veth, no address, no record, no endpoint" && return
    echo "left: $left"
    return 1
}

no_endpoints() {
    local node
    for node in a b; do
        [ "$(fp "$node" show endpoints -o json | grep -c '"pod"')" = 0 ] || return
    done
}

try_source() {
    cat <<END
kubectl="nsenter --net=$(netns outside) $(kube_program kubectl) --kubeconfig=$CLUSTER/admin.kubeconfig"
\$kubectl -n demo get pods -o wide         # add a service, a policy, a label: applied at once
\$kubectl get events -A
END
}
