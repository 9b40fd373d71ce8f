#!/usr/bin/env bash
# Builds the XDP objects that xdp-redirect/obj/ holds from xdp-redirect/ebpf/.
#
#   scripts/build-xdp.sh            build and write xdp-redirect/obj/
#   scripts/build-xdp.sh --check    build and compare, bit for bit, with what is committed there
#
# Nobody needs this to build or run fastpath: the objects are committed. It needs root only to install
# what is missing, and Debian 12, because the bytes depend on the compiler: Debian's rustc, cargo and
# LLVM 22 in the versions below, and bpf-linker. They are the same from any folder and any home.
#
# Exit codes: 0 built, or the same; 1 something failed; 2 wrong usage; 3 --check could not compare, for
# it has not the toolchain that obj/toolchain.txt names: it says so, and what it could check (the digests
# of the sources; that they build) is right; 4 the objects differ from the source.
set -euo pipefail
export LC_ALL=C

BPF_LINKER=0.13.0
LLVM=22
# Debian 12's security archive offers these; once it has newer ones, what it has is taken instead.
RUST_PACKAGE=1.96.0+dfsg1-1~deb12u2
LLVM_PACKAGE=1:22.1.8-1~deb12u1
PACKAGES=(
    "rustc-web=$RUST_PACKAGE" "cargo-web=$RUST_PACKAGE" "rust-web-src=$RUST_PACKAGE"
    "llvm-$LLVM-dev=$LLVM_PACKAGE" "libpolly-$LLVM-dev=$LLVM_PACKAGE"
)
OBJECTS=(outbox redirect traffic)

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

# What keeps the build from being made: a failure, unless only a comparison was asked for.
cannot() {
    [ $check = 1 ] || die "$@"
    say "NOT COMPARED: $*"
    exit 3
}

# What the objects are made from, by content and by name.
sources() {
    (cd "$root/xdp-redirect" && sha256sum src/abi.rs src/abi_outbox.rs src/abi_traffic.rs ebpf/Cargo.toml ebpf/Cargo.lock ebpf/src/*.rs)
}

# This much can be said without any toolchain.
if [ $check = 1 ] && ! diff <(grep -E '^[0-9a-f]{64}  ' "$obj/toolchain.txt") <(sources) >&2; then
    say "the sources have changed since the objects were built: run scripts/build-xdp.sh and commit"
    exit 4
fi

# --- the toolchain ------------------------------------------------------------------------------

missing=()
for package in "${PACKAGES[@]}"; do
    [ "$(dpkg-query -W -f '${Status}' "${package%%=*}" 2>/dev/null || true)" = 'install ok installed' ] ||
        missing+=("$package")
done
# The linker of the build scripts.
command -v cc >/dev/null || missing+=(gcc libc6-dev)
if [ ${#missing[@]} -gt 0 ]; then
    command -v apt-get >/dev/null || cannot "needs the Debian 12 packages ${missing[*]}"
    say "installing ${missing[*]}"
    sudo=; [ "$(id -u)" = 0 ] || sudo=sudo
    apt_install() {
        $sudo env DEBIAN_FRONTEND=noninteractive \
            apt-get install -y -q --no-install-recommends -o DPkg::Lock::Timeout=600 "$@" >&2
    }
    $sudo apt-get update -q >&2 || say "apt-get update failed"
    apt_install "${missing[@]}" || {
        say "not in these versions: taking those there are"
        apt_install "${missing[@]%%=*}" || cannot "apt-get could not install ${missing[*]%%=*}"
    }
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
        --root "$tools" >&2 || cannot "bpf-linker $BPF_LINKER could not be installed"
    linker=$tools/bin/bpf-linker
fi

toolchain() {
    "$RUSTC" --version
    "$RUSTC" --version --verbose | grep '^LLVM version'
    "$cargo" --version
    "$linker" --version
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
    diff <(head -n "$lines" "$obj/toolchain.txt") <(toolchain) >&2 || true
    cannot "the committed objects were made by another toolchain, as shown. The sources build, and are" \
        "those that the committed objects were made from"
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
