#!/usr/bin/env bash
# Everything that waits for a GPU, in one command on a machine with CUDA; no network is needed with a folder of wheels.
#   bash bench/cuda.sh [--system] [--wheels FOLDER] [options of bench/cuda.py]
# --system takes the machine's own Python with its PyTorch and compiler; what that Python lacks comes from the wheels.
set -euo pipefail
cd "$(dirname "$0")/.."
system=false
[ "${1:-}" = --system ] && system=true && shift
wheels=
[ "${1:-}" = --wheels ] && wheels=$2 && shift 2

if $system; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    [ -z "$wheels" ] || python3 -m pip install --quiet --no-index --no-deps --target "$site" "$wheels"/*.whl
    export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
    for package in shared tools/*; do # as if each were installed: its name and version, and where its source is
        read -r name version < <(sed -nE 's/^(name|version) = "(.*)"$/\2/p' "$package/pyproject.toml" | head -2 | xargs)
        about=$site/${name//-/_}-$version.dist-info
        mkdir "$about"
        printf 'Metadata-Version: 2.1\nName: %s\nVersion: %s\n' "$name" "$version" > "$about/METADATA"
        PYTHONPATH=$PYTHONPATH:$PWD/$package/src
    done
    python3 bench/cuda.py "$@"
    exit
fi
if [ -n "$wheels" ]; then
    python3 -m pip install --quiet --no-index --find-links "$wheels" uv 2> /dev/null || true
    export UV_FIND_LINKS=$wheels UV_NO_INDEX=1 UV_OFFLINE=1
fi
command -v uv > /dev/null || python3 -m pip install --quiet uv
extra=(--extra cuda)
python3 -c "import ctypes; ctypes.CDLL('libcuda.so.1')" 2> /dev/null || extra=() # gsplat and nvdiffrast need a GPU
uv sync --quiet --all-packages "${extra[@]}"
exec uv run --no-sync python bench/cuda.py "$@"
