#!/usr/bin/env bash
# The programs of a real Kubernetes API server for tests, in target/kube/bin: etcd, kube-apiserver,
# kube-controller-manager, kubectl. Sourced by test.sh; run by itself it does just that.
#
# They are built from Go modules pinned in control/tests/apiserver/go.mod; Go's own caches keep what was built, and
# nothing is asked of Go while the result is up to date. With KUBEBUILDER_ASSETS set, that folder's programs are
# taken instead. A machine without Go (or with one too old) gets it, for this checkout only, from the module proxy.

# shellcheck source=scripts/lib/setup.sh
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

GO=1.26.8
KUBE_MODULE=control/tests/apiserver
KUBE_DIR=target/kube
KUBE_PROGRAMS=(
    "etcd go.etcd.io/etcd/server/v3"
    "kube-apiserver k8s.io/kubernetes/cmd/kube-apiserver"
    "kube-controller-manager k8s.io/kubernetes/cmd/kube-controller-manager"
    "kubectl k8s.io/kubernetes/cmd/kubectl"
)

# What the module proxy serves as this toolchain, by architecture.
go_zip_sha256() {
    case "$1" in
        amd64) echo 30c2b1bf7dcc88d3eb0a1364e47ddd9128edb3110a30e8a0ef61cd5856b31de7 ;;
        arm64) echo 02b36b6787b3ac767668f630e2998df45a3b1f9ffee08d1bf3ef6487cd658d99 ;;
        *) die "no pinned Go for $1: install Go $GO or newer, or set KUBEBUILDER_ASSETS" ;;
    esac
}

# Whether the Go in PATH can build modules that ask for $GO.
has_go() {
    local version
    version=$(GOTOOLCHAIN=local go env GOVERSION 2>/dev/null) || return 1
    [ "$(printf '%s\n' "$GO" "${version#go}" | sort -V | head -n1)" = "$GO" ]
}

# Puts a Go that is new enough into PATH.
provide_go() {
    export PATH=$PATH:/usr/local/go/bin
    has_go && return
    local arch name root zip
    case "$(uname -m)" in
        x86_64) arch=amd64 ;;
        aarch64) arch=arm64 ;;
        *) arch=$(uname -m) ;;
    esac
    name=v0.0.1-go$GO.linux-$arch
    root=$PWD/target/tools/go-$GO
    if [ ! -x "$root/bin/go" ]; then
        install_packages curl unzip
        note "fetching Go $GO into ${root#"$PWD/"}"
        zip=target/tools/$name.zip
        mkdir -p target/tools
        fetch "https://proxy.golang.org/golang.org/toolchain/@v/$name.zip" >"$zip" || die "Go could not be fetched from proxy.golang.org"
        echo "$(go_zip_sha256 "$arch")  $zip" | sha256sum --check --quiet - || die "$zip is not what was expected"
        rm -rf "$root" "$root.new"
        mkdir "$root.new"
        unzip -q "$zip" -d "$root.new"
        # Module archives carry no modes.
        chmod -R a+rX "$root.new"
        find "$root.new"/golang.org/toolchain@*/{bin,pkg/tool} -type f -exec chmod a+x {} +
        mv "$root.new"/golang.org/toolchain@* "$root"
        rm -rf "$root.new" "$zip"
    fi
    export PATH=$root/bin:$PATH
    has_go || die "the Go in $root does not run"
}

# Version of a module as go.mod pins it.
pinned() { awk -v m="$1" '$1 == m && $2 ~ /^v/ { print $2; exit }' "$KUBE_MODULE/go.mod"; }

# Builds what is not up to date.
provide_kube() {
    local stamp wanted program name package version minor ldflags
    if [ -n "${KUBEBUILDER_ASSETS-}" ]; then
        for program in etcd kube-apiserver kubectl; do
            [ -x "$KUBEBUILDER_ASSETS/$program" ] || die "KUBEBUILDER_ASSETS=$KUBEBUILDER_ASSETS holds no $program"
        done
        return
    fi
    stamp=$KUBE_DIR/built-from
    wanted=$(cat "$KUBE_MODULE"/go.{mod,sum} "${BASH_SOURCE[0]}" | sha256sum)
    [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ] || return 0
    provide_go
    note "building etcd and Kubernetes from Go modules (some ten minutes when Go's caches are empty)"
    mkdir -p "$KUBE_DIR/bin"
    version=$(pinned k8s.io/kubernetes)
    minor=${version#v1.}
    minor=${minor%%.*}
    ldflags="-s -w -X k8s.io/component-base/version.gitVersion=$version"
    ldflags+=" -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=$minor"
    for program in "${KUBE_PROGRAMS[@]}"; do
        read -r name package <<<"$program"
        (
            export CGO_ENABLED=0 GOTOOLCHAIN=local
            cd "$KUBE_MODULE" && nice go build -mod=readonly -trimpath -buildvcs=false -tags grpcnotrace,notest \
                ${KUBE_BUILD_JOBS:+-p "$KUBE_BUILD_JOBS"} -ldflags "$ldflags" -o "$OLDPWD/$KUBE_DIR/bin/$name" "$package"
        ) || die "$name could not be built from $package"
    done
    printf '%s\n' "$wanted" >"$stamp"
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    set -euo pipefail
    cd "$(dirname "${BASH_SOURCE[0]}")/../.."
    title "API server for tests"
    provide_kube
    note "$KUBE_DIR/bin is there"
fi
