#!/usr/bin/env bash
# Runs the benchmarks and writes bench/results/latest.json (lab), graph.txt and flow.txt (in memory).
#
#   scripts/bench.sh           both; needs root (or sudo) for the lab
#   scripts/bench.sh --lab     the lab only
#   scripts/bench.sh --memory  in memory only
#
# ROUNDS=5 and MILLIS=2000 say how often and how long the lab measures.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib/setup.sh
. scripts/lib/setup.sh

mode=all
case "${1-}" in
    '') ;;
    --lab) mode=lab ;;
    --memory) mode=memory ;;
    -h | --help) sed -n '2,8s/^# \{0,1\}//p' scripts/bench.sh && exit 0 ;;
    *) sed -n '2,8s/^# \{0,1\}//p' scripts/bench.sh >&2 && exit 2 ;;
esac
rounds=${ROUNDS:-5}
millis=${MILLIS:-2000}

title "Setting up"
setup
export CARGO_TERM_COLOR=never
mkdir -p bench/results

if [ "$mode" != memory ]; then
    title "Lab: packets a second on veth"
    cargo build --release --quiet -p fastpath-control
    cargo build --release --quiet -p fastpath-bench
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
    # Twice what is expected, and a minute for what the machine does besides.
    limit=$((60 + rounds * (30 + 12 * millis / 1000)))
    as_root timeout --kill-after=30 "$limit" target/release/fastpath-bench lab \
        --rounds "$rounds" --millis "$millis" --json bench/results/latest.json
fi
if [ "$mode" != lab ]; then
    # Nothing to compare with: the files hold this run only.
    export CRITERION_HOME=$PWD/target/bench-criterion
    rm -rf "$CRITERION_HOME"
    title "In memory: cycles a packet, by node"
    cargo bench --quiet -p fastpath-bench --bench graph | tee bench/results/graph.txt
    title "In memory: the flow table, cycles a key"
    cargo bench --quiet -p fastpath-bench --bench flow | tee bench/results/flow.txt
fi
