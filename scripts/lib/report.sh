# shellcheck shell=bash
# Lines for people: what is being done, what was checked. Sourced by the other scripts.

if [ -t 1 ] && [ -z "${NO_COLOR-}" ]; then
    bold=$'\e[1m' green=$'\e[32m' red=$'\e[31m' dim=$'\e[2m' plain=$'\e[0m'
else
    bold='' green='' red='' dim='' plain=''
fi

passed=0
failed=0

title() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }
note() { printf '  %s%s%s\n' "$dim" "$*" "$plain"; }
die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# One line of a result; the second argument, if any, says what was seen.
good() {
    passed=$((passed + 1))
    printf '%s✔%s %s%s\n' "$green" "$plain" "$1" "${2:+ $dim($2)$plain}"
}
bad() {
    failed=$((failed + 1))
    printf '%s✘%s %s%s\n' "$red" "$plain" "$1" "${2:+ ($2)}"
}

# Runs a command as root: directly, or through sudo.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "this needs root (network namespaces, XDP): run it as root, or install sudo"
    fi
}
