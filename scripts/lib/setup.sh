#!/usr/bin/env bash
# Installs what building and running fastpath needs on Debian 12 (or a relative of it), only what is
# missing, and says what it does. Sourced by demo.sh and test.sh; run by itself it does just that.
#
# As a normal user it asks sudo for the packages; Rust is installed for the user, by rustup.

# shellcheck source=scripts/lib/report.sh
. "$(dirname "${BASH_SOURCE[0]}")/report.sh"

RUST=1.95.0

# xsk-rs builds libxdp and libbpf from source: a C compiler, clang for their BPF parts and the bindings.
BUILD_PACKAGES=(ca-certificates clang-19 curl gcc git libc6-dev libelf-dev m4 make pkg-config zlib1g-dev)
# Namespaces, offloads and traffic.
LAB_PACKAGES=(ethtool iperf3 iproute2 iputils-ping nftables openssl procps socat traceroute util-linux)

is_installed() {
    dpkg-query -W -f '${Status}' "$1" 2>/dev/null | grep -q 'install ok installed'
}

install_packages() {
    local package missing=()
    if ! command -v apt-get >/dev/null; then
        note "no apt-get here: make sure that these are installed (names as on Debian 12): $*"
        return
    fi
    for package in "$@"; do
        is_installed "$package" || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    note "installing ${missing[*]}"
    as_root apt-get update -q >/dev/null || die "apt-get update failed"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends \
        -o DPkg::Lock::Timeout=600 "${missing[@]}" >/dev/null || die "apt-get could not install: ${missing[*]}"
}

# Headers <asm/…> for clang's BPF target, which does not look into the multiarch folder.
provide_asm_headers() {
    [ -e /usr/include/asm ] && return
    if [ "$(uname -m)" = x86_64 ] && command -v apt-get >/dev/null; then
        install_packages gcc-multilib
    else
        local headers
        headers=/usr/include/$(uname -m)-linux-gnu
        export C_INCLUDE_PATH=$headers${C_INCLUDE_PATH:+:$C_INCLUDE_PATH}
    fi
}

# Whether a cargo, given as the command that starts it, has all that is needed.
has_rust() { "$@" --version && "$@" fmt --version && "$@" clippy --version; } >/dev/null 2>&1

install_rust() {
    export PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
    if command -v rustup >/dev/null; then
        has_rust rustup run "$RUST" cargo || {
            note "installing Rust $RUST with rustfmt and clippy"
            rustup toolchain install "$RUST" --profile minimal --component rustfmt --component clippy >/dev/null ||
                die "rustup could not install Rust $RUST with rustfmt and clippy"
        }
        return
    fi
    if command -v cargo >/dev/null && has_rust cargo; then
        local version oldest
        version=$(cargo --version | cut -d' ' -f2)
        oldest=$(printf '%s\n' "$RUST" "$version" | sort -V | head -n1)
        [ "$oldest" = "$RUST" ] && return
        note "cargo $version is older than $RUST"
    fi
    note "installing rustup and Rust $RUST for $(id -un)"
    local installer
    installer=$(fetch https://sh.rustup.rs || fetch https://static.rust-lang.org/rustup/rustup-init.sh) ||
        die "neither sh.rustup.rs nor static.rust-lang.org can be reached: install Rust $RUST with rustfmt and clippy"
    sh -s -- -y -q --no-modify-path --profile minimal --component rustfmt --component clippy \
        --default-toolchain "$RUST" <<<"$installer" >/dev/null || die "rustup's installer failed"
}

fetch() { curl --proto '=https' --tlsv1.2 -sSf "$1" 2>/dev/null; }

# Everything: what builds, and what the lab runs with.
setup() {
    install_packages "${BUILD_PACKAGES[@]}" "${LAB_PACKAGES[@]}"
    provide_asm_headers
    install_rust
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    set -euo pipefail
    title "Setting up"
    setup
    note "everything is there"
fi
