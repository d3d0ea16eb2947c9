#!/usr/bin/env bash
# All checks, the quick ones first; stops at the first that fails. "test.sh lint" leaves out the tests.
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
export QT_QPA_PLATFORM=${QT_QPA_PLATFORM:-offscreen}

title() {
    printf '\n== %s\n' "$*"
}

title "ruff and mypy"
$python -m ruff check .
$python -m ruff format --check .
$python -m mypy
[[ ${1:-} != lint ]] || exit 0

# The engine runs without QGIS; only the plugin's tests may bring it into their process.
title "engine";     $python -m pytest -p no:pytest_qgis --durations=5 tests/engine
title "plugin";     $python -m pytest --durations=5 tests/plugin
title "end to end"; $python -m pytest -p no:pytest_qgis --durations=5 tests/endtoend
