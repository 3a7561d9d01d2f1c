# Sourced by the scripts in this directory: how they report, fail, and find the tools of /usr/sbin.
# shellcheck shell=bash
set -Eeuo pipefail
trap 'printf "%s: line %s failed: %s\n" "$0" "$LINENO" "${BASH_COMMAND%%$'"'\n'"'*}" >&2' ERR
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin" LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive
umask 022

# Exit statuses that say what kind of failure it is are 100 plus the errno; 1 is any other failure.
# shellcheck disable=SC2034
readonly FAILED=1 NOT_FOUND=102 INVALID=122

say() { printf '%s\n' "$*"; }

# die STATUS MESSAGE [HINT]: the last line of standard error is the message, but for a hint on what to do.
die() {
    printf '%s\n' "$2" >&2
    if [ $# -gt 2 ]; then printf 'hint: %s\n' "$3" >&2; fi
    exit "$1"
}

need() {
    local tool
    for tool in "$@"; do
        type -P "$tool" >/dev/null ||
            die $FAILED "the program '$tool' is missing" "'make packages' (or scripts/install-packages) installs it"
    done
}

# lock DIRECTORY: one script at a time in it, so that what an interrupted one left behind can be removed safely.
lock() {
    exec 9>"$1/.lock"
    if ! flock --nonblock 9; then
        say "waiting for another build that uses $1"
        flock 9
    fi
    rm -rf --one-file-system "$1"/.tmp.*
}

# Names of files and of everything in directories, with their contents, as 16 hex digits.
digest() {
    find "$@" -type f -print0 | sort --zero-terminated | xargs --null sha256sum | sed 's| .*/| |' | sha256sum | cut -c1-16
}

# Publishes NEW under the final NAME with everything in it on disk first: there or absent, never half.
publish() {
    if [ -d "$1" ]; then sync --file-system "$1"; else sync "$1"; fi
    mv --no-target-directory "$1" "$2"
}

# The files of /etc that every guest has and no package brings. Resolvers on the host's loopback mean nothing in a guest.
write_names() {
    local tree=$1 hostname=$2 resolvers
    printf '%s\n' "$hostname" >"$tree/etc/hostname"
    printf '127.0.0.1 localhost\n127.0.1.1 %s\n::1 localhost ip6-localhost\n' "$hostname" >"$tree/etc/hosts"
    resolvers=$({ cat /run/systemd/resolve/resolv.conf /etc/resolv.conf 2>/dev/null || true; } |
        awk '$1 == "nameserver" && $2 !~ /^(127\.|::1|fe80)/ && !seen[$2]++ && n++ < 3 { print "nameserver", $2 }')
    rm -f "$tree/etc/resolv.conf"
    printf '%s\n' "${resolvers:-nameserver 1.1.1.1}" >"$tree/etc/resolv.conf"
}
