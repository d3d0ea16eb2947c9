#!/usr/bin/env bash
# All checks, the quick ones first, and all tests but those marked slow; stops at the first that fails. Arguments choose
# parts, with their slow tests: lint, engine, plugin, endtoend, files like engine/test_grid.py, or all.
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
export QT_QPA_PLATFORM=${QT_QPA_PLATFORM:-offscreen}

title() {
    printf '\n== %s\n' "$*"
}

lint() {
    $python -m ruff check . && $python -m ruff format --check . && $python -m mypy &&
        PYTHONPATH=backend:. ${python%python}lint-imports --no-cache && $python scripts/messages.py check
}

# The engine runs without QGIS; only the plugin's tests may bring it into their process. Whole parts run in a process
# for each core, each of them with one thread.
run_tests() {
    local options=(--durations=5)
    [[ $1 == plugin* ]] || options+=(-p no:pytest_qgis)
    if [[ $1 != *.py* ]]; then
        options+=(--numprocesses=logical --dist=worksteal "${selection[@]}")
        export OMP_NUM_THREADS=1
    fi
    $python -m pytest "${options[@]}" "tests/$1"
}

selection=()
(($#)) || { selection=(-m "not slow"); set -- lint engine plugin endtoend; }
[[ $* != all ]] || set -- lint engine plugin endtoend
for part; do
    title "$part"
    if [[ $part == lint ]]; then lint; else run_tests "$part"; fi
done
