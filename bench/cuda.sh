#!/usr/bin/env bash
# Everything that waits for a GPU, in one command on a machine with CUDA; no network is needed with a folder of wheels.
#   bash bench/cuda.sh [--wheels FOLDER] [options of bench/cuda.py]
set -euo pipefail
cd "$(dirname "$0")/.."
if [ "${1:-}" = --wheels ]; then
    python3 -m pip install --quiet --no-index --find-links "$2" uv 2> /dev/null || true
    export UV_FIND_LINKS=$2 UV_NO_INDEX=1 UV_OFFLINE=1
    shift 2
fi
command -v uv > /dev/null || python3 -m pip install --quiet uv
extra=(--extra cuda)
python3 -c "import ctypes; ctypes.CDLL('libcuda.so.1')" 2> /dev/null || extra=() # gsplat and nvdiffrast need a GPU
uv sync --quiet --all-packages "${extra[@]}"
exec uv run --no-sync python bench/cuda.py "$@"
