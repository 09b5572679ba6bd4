# Sourced by the scripts beside it: goes to the repository's root; a virtual environment there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# The first of the usual names that is at least 3.10; PYTHON names another.
find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.10}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "kdfast needs Python 3.10 or newer; set PYTHON to one" >&2
    return 1
}

# Creates .venv (once) and puts it first on PATH.
use_venv() {
    if [ ! -x .venv/bin/pip ]; then
        rm -rf .venv
        "$(find_python)" -m venv .venv
    fi
    PATH="$PWD/.venv/bin:$PATH"
    export PIP_DISABLE_PIP_VERSION_CHECK=1
}

# Installs the tree with its test extra, and kdfast._probe, which the tests of the kernels' core call.
install_with_tests() { pip install --quiet --config-settings=cmake.define.KDFAST_TESTS=ON ".[test]"; }

# The same examples on every run; see tests/conftest.py.
export HYPOTHESIS_PROFILE=${HYPOTHESIS_PROFILE:-fixed}

# Settings under which PyTorch has no fused multiply-add, as our baseline: its errors are what ours are held to.
torch_like_baseline=(ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE ONEDNN_MAX_CPU_ISA=SSE41)
