#!/usr/bin/env bash
# Builds the XDP objects that xdp-redirect/obj/ holds from xdp-redirect/ebpf/.
#
#   scripts/build-xdp.sh            build and write xdp-redirect/obj/
#   scripts/build-xdp.sh --check    build and compare, bit for bit, with what is committed there
#
# Nobody needs this to build or run fastpath: the objects are committed. It needs root only to install
# what is missing, and Debian 12, because the bytes depend on the compiler: Debian's rustc, cargo and
# LLVM 22, and bpf-linker. They are the same from any folder and any home.
#
# Exit codes: 0 built, or the same; 1 something failed; 2 wrong usage; 4 the objects differ from the
# source. Under another compiler than the one that obj/toolchain.txt names, --check cannot compare
# bytes: it then builds, compares the digest of the sources, and says so.
set -euo pipefail
export LC_ALL=C

BPF_LINKER=0.13.0
LLVM=22
PACKAGES=(rustc-web cargo-web rust-web-src "llvm-$LLVM-dev" "libpolly-$LLVM-dev")
OBJECTS=(redirect traffic)

say() { printf 'build-xdp: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

check=0
case "${1-}" in
    "") ;;
    --check) check=1 ;;
    *) say "unknown argument: $1 (allowed: --check)"; exit 2 ;;
esac
[ $# -le 1 ] || { say "at most one argument"; exit 2; }

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
ebpf=$root/xdp-redirect/ebpf
obj=$root/xdp-redirect/obj
llvm_bin=/usr/lib/llvm-$LLVM/bin
tools=${FASTPATH_TOOLS:-$root/target/tools}

# --- the toolchain ------------------------------------------------------------------------------

missing=()
for package in "${PACKAGES[@]}"; do
    [ "$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null || true)" = 'install ok installed' ] || missing+=("$package")
done
# The linker of the build scripts.
command -v cc >/dev/null || missing+=(gcc libc6-dev)
if [ ${#missing[@]} -gt 0 ]; then
    command -v apt-get >/dev/null || die "needs the Debian 12 packages: ${missing[*]}"
    say "installing ${missing[*]}"
    sudo=; [ "$(id -u)" = 0 ] || sudo=sudo
    $sudo apt-get update -q >&2
    $sudo env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -q --no-install-recommends -o DPkg::Lock::Timeout=600 "${missing[@]}" >&2
fi

# Debian's own compiler and cargo, whatever rustup has first in PATH, and none of the caller's flags.
unset RUSTFLAGS CARGO_BUILD_RUSTFLAGS RUSTC_WRAPPER RUSTC_WORKSPACE_WRAPPER CARGO_BUILD_TARGET RUSTUP_TOOLCHAIN
export RUSTC=/usr/bin/rustc CC=cc
export PATH="$tools/bin:$llvm_bin:$PATH"
cargo=/usr/bin/cargo

# A linker of the right version and against the right LLVM: the caller's, or one of our own.
linker=
for candidate in "$tools/bin/bpf-linker" "$(command -v bpf-linker || true)"; do
    if [ -x "$candidate" ] && [ "$("$candidate" --version)" = "bpf-linker $BPF_LINKER" ] &&
        [[ $(ldd "$candidate") == *"libLLVM.so.$LLVM"* ]]; then
        linker=$candidate
        break
    fi
done
if [ -z "$linker" ]; then
    say "installing bpf-linker $BPF_LINKER into $tools (about two minutes)"
    "$cargo" install bpf-linker --version "$BPF_LINKER" --no-default-features --features "llvm-$LLVM" \
        --root "$tools" >&2
    linker=$tools/bin/bpf-linker
fi

toolchain() {
    "$RUSTC" --version
    "$RUSTC" --version --verbose | grep '^LLVM version'
    "$cargo" --version
    "$linker" --version
}

# What the objects are made from, by content and by name.
sources() {
    (cd "$root/xdp-redirect" && sha256sum src/abi.rs src/abi_traffic.rs ebpf/Cargo.toml ebpf/Cargo.lock ebpf/src/*.rs)
}

# --- the build ----------------------------------------------------------------------------------

out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

cd "$ebpf"
export CARGO_TARGET_DIR=$ebpf/target
"$cargo" fetch --locked --quiet

# BTF holds source paths: the same ones everywhere.
flags=(-Clink-arg=--btf -Cdebuginfo=2 "--remap-path-prefix=$ebpf=.")
for registry in "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/; do
    flags+=("--remap-path-prefix=${registry%/}=crates")
done
CARGO_ENCODED_RUSTFLAGS=$(IFS=$'\x1f'; printf '%s' "${flags[*]}")
export CARGO_ENCODED_RUSTFLAGS
export CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER=$linker

RUSTC_BOOTSTRAP=1 "$cargo" build --locked --release --target bpfel-unknown-none -Z build-std=core >&2

for object in "${OBJECTS[@]}"; do
    "$llvm_bin/llvm-strip" -g -o "$out/$object.o" "target/bpfel-unknown-none/release/$object"
done
{
    toolchain
    sources
} >"$out/toolchain.txt"

# --- write, or compare --------------------------------------------------------------------------

if [ $check = 0 ]; then
    mkdir -p "$obj"
    for file in "${OBJECTS[@]/%/.o}" toolchain.txt; do install -m 644 "$out/$file" "$obj/$file"; done
    say "wrote ${obj#"$PWD"/}: ${OBJECTS[*]/%/.o} toolchain.txt"
    exit 0
fi

lines=$(toolchain | wc -l)
if ! cmp -s <(head -n "$lines" "$obj/toolchain.txt") <(toolchain); then
    say "NOT COMPARED BIT FOR BIT: the committed objects were made by another toolchain:"
    diff <(head -n "$lines" "$obj/toolchain.txt") <(toolchain) >&2 || true
    if ! diff <(tail -n "+$((lines + 1))" "$obj/toolchain.txt") <(sources) >&2; then
        say "the sources have changed since the objects were built: run scripts/build-xdp.sh"
        exit 4
    fi
    say "the sources build, and are those that the committed objects were made from"
    exit 0
fi
bad=0
for file in "${OBJECTS[@]/%/.o}" toolchain.txt; do
    if cmp -s "$out/$file" "$obj/$file"; then
        say "$file: the same"
    else
        say "$file: DIFFERS from what the source gives: run scripts/build-xdp.sh and commit"
        bad=4
    fi
done
exit $bad
