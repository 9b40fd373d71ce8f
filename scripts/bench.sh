#!/usr/bin/env bash
# Runs the benchmarks and writes bench/results/: rows (latest.json), a table (table.md), plots.
#
#   scripts/bench.sh           all, about half an hour; needs root (or sudo) for the lab
#   scripts/bench.sh --quick   the lab with short measurements, 5 minutes after the build
#   scripts/bench.sh --lab     the lab only
#   scripts/bench.sh --memory  in memory only: nodes, chain and flow table
#   scripts/bench.sh --report  puts together what was measured before
#
# ROUNDS=5 and MILLIS=1500 say how often and how long the lab measures. Peers that cannot be installed or do not start
# are named in the results, with the reason. The classifier, new sessions, updates and single keys have commands of their
# own (bench/README.md); rows that they wrote into bench/results/ are put together with these.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib/setup.sh
. scripts/lib/setup.sh

usage() { sed -n '2,13s/^# \{0,1\}//p' scripts/bench.sh; }

mode=all
case "${1-}" in
    '') ;;
    --quick | --lab | --memory | --report) mode=${1#--} ;;
    -h | --help) usage && exit 0 ;;
    *) usage >&2 && exit 2 ;;
esac
if [ "$mode" = quick ]; then
    rounds=${ROUNDS:-3} millis=${MILLIS:-300} options=(--round-trips 250)
else
    rounds=${ROUNDS:-5} millis=${MILLIS:-1500} options=()
fi

# What the lab compares with. Without one of them its rows say so.
PEER_PACKAGES=(coreutils dpdk librte-net-af-xdp23 nftables openvswitch-switch-dpdk)

install_peers() {
    local package
    for package in "${PEER_PACKAGES[@]}"; do
        is_installed "$package" && continue
        # Its service is not for us: the lab starts its own, in a namespace.
        (RUNLEVEL=1 install_packages "$package") || note "$package: not to be had; its rows will be marked as skipped"
    done
}

title "Setting up"
setup
export CARGO_TERM_COLOR=never
mkdir -p bench/results

if [ "$mode" = all ] || [ "$mode" = quick ] || [ "$mode" = lab ]; then
    install_peers
    title "Building"
    cargo build --release --quiet -p fastpath-control
    cargo build --release --quiet -p fastpath-bench
    title "Lab: the dataplane and its peers on veths"
    mounted=
    finish() {
        as_root target/release/fastpath-bench clean || true
        [ -z "$mounted" ] || as_root umount /sys/fs/bpf || true
    }
    trap finish EXIT
    if ! mountpoint -q /sys/fs/bpf; then
        as_root mount -t bpf bpf /sys/fs/bpf
        mounted=yes
    fi
    # Twice what is expected, and two minutes for what the machine does besides.
    limit=$((120 + rounds * (100 + 110 * millis / 1000)))
    as_root timeout --kill-after=30 "$limit" target/release/fastpath-bench lab \
        --rounds "$rounds" --millis "$millis" "${options[@]}" --json bench/results/lab.json
fi
if [ "$mode" = all ] || [ "$mode" = memory ]; then
    # Nothing to compare with: the files hold this run only.
    export CRITERION_HOME=$PWD/target/bench-criterion
    rm -rf "$CRITERION_HOME"
    title "In memory: cycles a packet, by node"
    cargo bench --quiet -p fastpath-bench --bench graph | tee bench/results/graph.txt
    title "In memory: the flow table, cycles a key"
    cargo bench --quiet -p fastpath-bench --bench flow | tee bench/results/flow.txt
fi
title "Results"
[ -x target/release/fastpath-bench ] || cargo build --release --quiet -p fastpath-bench
target/release/fastpath-bench report --dir bench/results
