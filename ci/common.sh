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

# Installs packages into .venv by uv: seconds where pip takes minutes. uv reads none of pip's settings, so it is given those
# that say where packages come from.
install_packages() {
    command -v uv >/dev/null || pip install --quiet --no-compile uv
    local key value
    while IFS='=' read -r key value; do
        value=$(printf '%b' "${value//\'/}" | xargs) # 'a\nb' is the list a b
        case ${key##*.} in # the environment's settings come first
            index-url) export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$value}" ;;
            extra-index-url) export UV_INDEX="${UV_INDEX:-$value}" UV_INDEX_STRATEGY=unsafe-best-match ;;
            find-links) export UV_FIND_LINKS="${UV_FIND_LINKS:-${value// /,}}" ;;
            constraint) export UV_CONSTRAINT="${UV_CONSTRAINT:-$value}" ;;
            cert) export SSL_CERT_FILE="${SSL_CERT_FILE:-$value}" ;;
        esac
    done < <(pip config list)
    uv pip install --quiet --python .venv "$@"
}

# Installs the tree with its test extra, and kdfast._probe, which the tests of the kernels' core call. KDFAST_ISAS names the
# instruction sets: all by default; native: this CPU's. Only what has changed is compiled (build/tests, ccache).
install_with_tests() {
    install_packages "scikit-build-core>=0.11" "pybind11>=3.0" "cmake>=3.26" "ninja>=1.11"
    local settings=("build-dir=build/tests/{wheel_tag}" "cmake.define.KDFAST_TESTS=ON")
    settings+=("cmake.define.KDFAST_ISAS=${KDFAST_ISAS:-all}")
    install_packages --no-build-isolation "${settings[@]/#/--config-setting=}" --reinstall-package kdfast ".[test]"
    install_packages --no-deps "weaver-core>=0.4" # of which tests train two networks, that need only PyTorch
    # Where they can't be compiled, a package without them is installed: see pyproject.toml.
    python -c "import kdfast._cpu, kdfast._probe"
}

# install_next_to_torch PYTHON VENV REQUIREMENTS: a virtual environment that has the packages of PYTHON's torch (be that in an
# environment itself or not), and those of the file REQUIREMENTS that are missing there. KDFAST_WHEELS: a folder to take them
# from, where no index can be reached.
install_next_to_torch() {
    local python=$1 venv=$2 source=() packages
    packages=$("$python" -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parents[1])')
    if [ ! -x "$venv/bin/python" ]; then
        "$python" -m venv --system-site-packages --without-pip "$venv"
        echo "$packages" >"$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/next-to-torch.pth"
    fi
    if [ -n "${KDFAST_WHEELS:-}" ]; then
        source=(--no-index --find-links "$KDFAST_WHEELS")
    fi
    PIP_DISABLE_PIP_VERSION_CHECK=1 "$venv/bin/python" -m pip install --quiet "${source[@]}" -r "$3"
}

# With ccache, a clone in another folder compiles nothing that was compiled before.
if command -v ccache >/dev/null; then
    export CMAKE_CXX_COMPILER_LAUNCHER=ccache CCACHE_BASEDIR=$PWD CCACHE_NOHASHDIR=1
fi

# NumPy's matrix products run on the process's own core: more threads than cores wait for each other.
export OPENBLAS_NUM_THREADS=1

# Options of pytest: a process per core; the tests of a file share what its fixtures have made.
parallel=(--numprocesses=logical --maxprocesses=8 --dist=loadfile)

# Tests start hundreds of Python processes: where bytecode may not be kept, each compiles all that it imports.
unset PYTHONDONTWRITEBYTECODE

# The same examples on every run; see tests/conftest.py.
export HYPOTHESIS_PROFILE=${HYPOTHESIS_PROFILE:-fixed}

# Settings under which PyTorch has no fused multiply-add, as our baseline: its errors are what ours are held to.
torch_like_baseline=(ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE ONEDNN_MAX_CPU_ISA=SSE41)
