#!/usr/bin/env bash
# Runs the checks and tests on other releases of Debian, each in a chroot. By hand, as root; CI does not.
#
#     make matrix                                      all parts, on Debian 13 and testing
#     make matrix ARGS="trixie lint plugin"            these parts of scripts/test.sh, there
#     make matrix ARGS="testing engine/test_grid.py"   one file, there
#
# A chroot takes 4 GB and ten minutes to make (debootstrap must be installed), lies in CLIPPAN_MATRIX
# (~/.cache/clippan-matrix) and is used again; after "rm -r" of its folder it is made anew. CLIPPAN_MIRROR names
# another mirror than debootstrap's own.
set -euo pipefail
cd "$(dirname "$0")/.."
cache=${CLIPPAN_MATRIX:-$HOME/.cache/clippan-matrix}

((EUID == 0)) || { echo "make matrix changes into other systems, which only root can do." >&2; exit 1; }
command -v debootstrap >/dev/null || { echo "apt-get install debootstrap, then run make matrix again." >&2; exit 1; }
# The mounts below go when this script does.
[[ ${CLIPPAN_MATRIX_MOUNTS:-} == own ]] || CLIPPAN_MATRIX_MOUNTS=own exec unshare --mount bash "$0" "$@"

suites=() parts=()
for argument; do
    case $argument in
        trixie | testing) suites+=("$argument") ;;
        *) parts+=("$argument") ;;
    esac
done
((${#suites[@]})) || suites=(trixie testing)
((${#parts[@]})) || parts=(lint engine plugin endtoend)

# PIP_CERT and the proxies only: the machine's other settings of pip name wheels for its own Python.
inside() {
    local variables=(PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 PIP_CERT=/etc/ssl/certs/ca-certificates.crt)
    local name
    for name in http_proxy https_proxy no_proxy PIP_INDEX_URL OMP_NUM_THREADS; do
        [[ -z ${!name:-} ]] || variables+=("$name=${!name}")
    done
    env -i "${variables[@]}" chroot "$root" "$@"
}

make_root() {
    [[ -e $root/made ]] && return
    rm -rf "$root"
    debootstrap --variant=minbase --include=ca-certificates "$suite" "$root" ${CLIPPAN_MIRROR:-} || return 1
    touch "$root/made"
}

enter_root() {
    cp /etc/resolv.conf /etc/hosts "$root/etc/"
    cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/" # with those that the machine's owner has added
    echo 'Acquire::Check-Valid-Until "false";' >"$root/etc/apt/apt.conf.d/90matrix" # mirrors may stand still
    mount -t proc proc "$root/proc" && mount --rbind /dev "$root/dev"
}

copy_checkout() {
    mkdir -p "$root/clippan"
    find "$root/clippan" -mindepth 1 -maxdepth 1 ! -name .venv ! -name build -exec rm -rf {} +
    git ls-files -z --cached --others --exclude-standard | # what is deleted and not yet committed is still in it
        while IFS= read -rd '' file; do [[ ! -f $file ]] || printf '%s\0' "$file"; done |
        tar --create --null --files-from=- | tar --extract --no-same-owner --directory="$root/clippan"
}

# Debian's torch, as PyPI's brings 5 GB of CUDA; setup.sh keeps what is there.
set_up() {
    inside dpkg-query -W python3-torchvision >/dev/null 2>&1 ||
        { inside apt-get update && inside apt-get install -y --no-install-recommends python3-torchvision; } || return 1
    inside bash /clippan/scripts/setup.sh
}

results=()
for suite in "${suites[@]}"; do
    root=$cache/$suite
    mkdir -p "$cache"
    if ! { make_root && enter_root && copy_checkout && set_up; }; then
        results+=("$suite: not set up")
        continue
    fi
    for part in "${parts[@]}"; do
        printf '\n==== %s: %s\n' "$suite" "$part"
        if inside bash /clippan/scripts/test.sh "$part"; then outcome=passed; else outcome=FAILED; fi
        results+=("$suite $part: $outcome")
    done
done
printf '\n'
printf '%s\n' "${results[@]}"
[[ ${results[*]} != *FAILED* && ${results[*]} != *"not set up"* ]]
