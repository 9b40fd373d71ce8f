#!/usr/bin/env bash
# Runs every test. The last line is `N passed, N failed`; the exit code is not zero when any failed.
#
#   scripts/test.sh               everything but what only --deep adds
#   scripts/test.sh --quick       formatting, lints, docs, unit and property tests
#   scripts/test.sh --lab [NAME]  lab tests only: all, or those whose name contains NAME, with their output
#   scripts/test.sh --cni [NAME]  lab tests of the CNI plugin only, likewise
#   scripts/test.sh --api [NAME]  tests of the Kubernetes source only, likewise
#   scripts/test.sh --lab-by-api [NAME]
#                                 lab tests whose daemons follow a real API server
#   scripts/test.sh --deep [PART] everything, then Miri, sanitizers and the licence check; or only one of these:
#                                 miri, address, thread, licences
#
# KUBEBUILDER_ASSETS=DIR        etcd, kube-apiserver and kubectl are there, and need not be built
# FASTPATH_ALLOW_UNCOMPARED=1   the toolchain that made the committed XDP objects need not be had
#
# Tests make network namespaces, attach XDP programs and open AF_XDP sockets: they run as root. As a normal
# user this builds as you and asks sudo to run what was built.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib/setup.sh
. scripts/lib/setup.sh
# shellcheck source=scripts/lib/kube.sh
. scripts/lib/kube.sh

usage() { sed -n '2,19s/^# \{0,1\}//p' scripts/test.sh; }

mode=all
lab_filter=()
while [ $# -gt 0 ]; do
    case "$1" in
        --quick) mode=quick ;;
        --deep)
            mode=deep
            case "${2-}" in
                miri | address | thread | licences)
                    mode=part
                    part=$2
                    shift
                    ;;
            esac
            ;;
        --lab | --api | --lab-by-api)
            mode=${1#--}
            if [ $# -gt 1 ]; then
                lab_filter=("$2")
                shift
            fi
            ;;
        --cni)
            mode=lab
            lab_filter=("cni::")
            if [ $# -gt 1 ]; then
                lab_filter=("cni::$2")
                shift
            fi
            ;;
        -h | --help) usage && exit 0 ;;
        *) usage >&2 && exit 2 ;;
    esac
    shift
done

# Of the crate `fastpath`: tables, wire formats, frames, and whole nodes over memory ports. Left out is what opens
# sockets (`io::xsk`), and of Miri's share also what asks the processor for its clock (`engine`) and long loops over
# plain numbers (`tables::maglev`). Miri ignores optimisations, so what is small elsewhere counts: PROPTEST_CASES.
DEEP=(-p fastpath --lib)
MIRI=(--test pipeline -- --skip io::xsk --skip engine:: --skip tables::maglev)
SANITIZED=(--test pipeline --test policy --test nat --test fragments --test path_mtu -- --skip io::xsk)
DEEP_TARGET=$(uname -m)-unknown-linux-gnu

work=$(mktemp -d)
mounted_bpffs=
finish() {
    rm -rf "$work"
    [ -z "$mounted_bpffs" ] || as_root umount /sys/fs/bpf || true
}
trap finish EXIT

# A check that passes or fails as a whole.
step() {
    local name=$1
    shift
    title "$name"
    if "$@"; then good "$name"; else bad "$name"; fi
}

# A command that prints libtest's results: its tests are counted one by one.
tests() {
    local name=$1 log=$work/log ok=0 counted_passed counted_failed
    shift
    title "$name"
    "$@" 2>&1 | tee "$log" || ok=$?
    read -r counted_passed counted_failed < <(
        sed -nE 's/^test result: .* ([0-9]+) passed; ([0-9]+) failed;.*/\1 \2/p' "$log" |
            awk '{ p += $1; f += $2 } END { print p + 0, f + 0 }'
    )
    passed=$((passed + counted_passed))
    failed=$((failed + counted_failed))
    if [ "$ok" != 0 ] && [ "$counted_failed" = 0 ]; then
        # It did not build, or it died: no result line says so.
        bad "$name" "ended with code $ok"
    elif [ "$counted_passed" = 0 ] && [ "$counted_failed" = 0 ]; then
        bad "$name" "no test ran"
    else
        note "$name: $counted_passed passed, $counted_failed failed"
    fi
}

# The BPF file system holds what the daemon pins; one that is mounted for the tests goes with them.
provide_bpffs() {
    mountpoint -q /sys/fs/bpf && return
    as_root mount -t bpf bpf /sys/fs/bpf
    mounted_bpffs=yes
}

# Whether the committed XDP objects are what their source gives. Not to have been able to compare is no pass.
xdp_objects() {
    local name="XDP objects are what the source gives" code=0
    title "$name"
    scripts/build-xdp.sh --check || code=$?
    case "$code" in
        0) good "$name" ;;
        3)
            if [ "${FASTPATH_ALLOW_UNCOMPARED-}" = 1 ]; then
                note "NOT COMPARED: FASTPATH_ALLOW_UNCOMPARED=1 lets that be; it counts neither as passed nor as failed"
            else
                bad "$name" "NOT COMPARED, for want of the toolchain; FASTPATH_ALLOW_UNCOMPARED=1 goes on without"
            fi
            ;;
        *) bad "$name" "ended with code $code" ;;
    esac
}

# What the CNI plugin is tested with: the reference runtime, built from Go modules, and Debian's IPAM plugin.
CNITOOL=v1.3.1
provide_cni_peers() {
    install_packages containernetworking-plugins
    [ -x target/tools/bin/cnitool ] && return
    local go=go
    command -v go >/dev/null || { [ -x /usr/local/go/bin/go ] && go=/usr/local/go/bin/go; } || install_packages golang-go
    note "building cnitool $CNITOOL"
    GOBIN=$PWD/target/tools/bin GOFLAGS=-p=2 "$go" install "github.com/containernetworking/cni/cnitool@$CNITOOL"
}

lab() {
    cargo test -p fastpath-control --test lab -- --test-threads=1 "$@"
}

api() {
    cargo test -p fastpath-control --test api -- --test-threads=1 "$@"
}

# The part of the lab in which the source matters: what is enforced, and what changes. The CNI plugin's tests choose uids,
# which an API server gives out itself.
LAB_BY_API=(conformance:: policy:: service:: churn::)
lab_by_api() {
    FASTPATH_LAB_SOURCE=kubernetes lab --skip cni:: "$@"
}

# Nightly Rust with what Miri and the sanitizers need; an extra that not every machine can get.
nightly() {
    command -v rustup >/dev/null || return
    cargo +nightly miri --version >/dev/null 2>&1 ||
        rustup toolchain install nightly --profile minimal --component miri --component rust-src >/dev/null 2>&1
    cargo +nightly miri --version >/dev/null 2>&1 &&
        [ -d "$(rustc +nightly --print sysroot)/lib/rustlib/src/rust/library" ]
}

# The memory of frames is never given back (the kernel may still write to it): leaks are no finding.
miri() {
    PROPTEST_CASES=${PROPTEST_CASES:-2} \
        MIRIFLAGS="-Zmiri-disable-isolation -Zmiri-ignore-leaks -Zmiri-permissive-provenance" \
        cargo +nightly miri test "${DEEP[@]}" "${MIRI[@]}"
}

sanitized() {
    ASAN_OPTIONS=detect_leaks=0 CARGO_TARGET_DIR=target/$1 RUSTFLAGS="-Zsanitizer=$1" PROPTEST_CASES=${PROPTEST_CASES:-32} \
        cargo +nightly test -Zbuild-std --target "$DEEP_TARGET" "${DEEP[@]}" "${SANITIZED[@]}"
}

# With Miri or a sanitizer; `$1` is the name, the rest the command.
instrumented() {
    if nightly; then
        tests "$@"
    else
        bad "$1" "NOT RUN: it needs nightly Rust with miri and rust-src, which rustup could not install here"
    fi
}

licences() {
    local ebpf=xdp-redirect/ebpf/Cargo.toml
    PATH=$PWD/target/tools/bin:$PATH
    # Unoptimised: built in a third of the time, and run once.
    if ! command -v cargo-deny >/dev/null && ! cargo install --quiet --locked --debug cargo-deny --root target/tools; then
        bad "Licences" "NOT RUN: cargo-deny is not installed and could not be"
        return
    fi
    step "Licences and sources" cargo deny --all-features check licenses bans sources
    step "Licences and sources of the XDP programs" cargo deny --manifest-path "$ebpf" --config deny.toml check \
        --allow license-not-encountered licenses bans sources
    if cargo deny fetch db >/dev/null 2>&1; then
        step "Advisories" cargo deny --all-features check advisories
    else
        title "Advisories"
        note "NOT RUN: the database (github.com/RustSec/advisory-db) cannot be reached; counts neither as passed nor as failed"
    fi
}

deep() {
    case "$1" in
        miri) instrumented "Miri" miri ;;
        address) instrumented "Address sanitizer" sanitized address ;;
        thread) instrumented "Thread sanitizer" sanitized thread ;;
        licences) licences ;;
    esac
}

title "Setting up"
setup
install_packages shellcheck
provide_bpffs
export CARGO_TERM_COLOR=never RUST_BACKTRACE=${RUST_BACKTRACE:-1}
if [ "$(id -u)" != 0 ]; then
    # Cargo runs test programs by this; nothing in target/ comes to belong to root.
    as_root true
    triple=$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
    export "CARGO_TARGET_${triple}_RUNNER=sudo -E"
fi

case "$mode" in all | deep | lab | api | lab-by-api) provide_kube ;; esac

if [ "$mode" != lab ] && [ "$mode" != api ] && [ "$mode" != lab-by-api ] && [ "$mode" != part ]; then
    step "Formatting" cargo fmt --all --check
    step "Lints" cargo clippy --workspace --all-targets --quiet -- -D warnings
    step "Lints of the lab" cargo clippy -p fastpath-control --test lab --test api --quiet -- -D warnings
    step "Documentation" env RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --quiet --document-private-items
    step "Shell scripts" shellcheck -x scripts/*.sh scripts/lib/*.sh .ci/run
    tests "Unit and property tests" cargo test --workspace --no-fail-fast
fi
if [ "$mode" = all ] || [ "$mode" = deep ]; then
    xdp_objects
fi
[ "$mode" = quick ] || [ "$mode" = part ] || provide_cni_peers
case "$mode" in
    all | deep)
        tests "Kubernetes source" api
        tests "Lab" lab
        tests "Lab by the Kubernetes API" lab_by_api "${LAB_BY_API[@]}"
        ;;
    api) tests "Kubernetes source" api --nocapture "${lab_filter[@]}" ;;
    lab-by-api)
        [ ${#lab_filter[@]} -gt 0 ] || lab_filter=("${LAB_BY_API[@]}")
        tests "Lab by the Kubernetes API" lab_by_api --nocapture "${lab_filter[@]}"
        ;;
    lab) tests "Lab" lab --nocapture "${lab_filter[@]}" ;;
esac
case "$mode" in
    deep) for part in miri address thread licences; do deep "$part"; done ;;
    part) deep "$part" ;;
esac

printf '\n%d passed, %d failed\n' "$passed" "$failed"
[ "$failed" = 0 ]
