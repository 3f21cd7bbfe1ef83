#!/usr/bin/env bash
# From a driving log to moving Gaussians.
#
#   demo/driving_scene.sh [PANDASET_ROOT]   run it as: uv run --all-packages bash demo/driving_scene.sh
#
# Without PANDASET_ROOT it makes a street with known motion first. Everything goes under $OUT (default out/driving),
# which must not exist yet. $CLIP (default 0) is the clip of the index; $SYNTH_OPTIONS and $OVERFIT_OPTIONS are added to
# the commands synth and overfit as they are.
set -euo pipefail

out=${OUT:-out/driving}
clip=${CLIP:-0}
source "$(dirname "$0")/steps.sh"

if [ $# -gt 1 ]; then echo "error: give one folder of scenes, or none for a synthetic one" >&2; exit 2; fi
if [ $# -eq 1 ] && [ ! -d "$1" ]; then echo "error: $1 is not a folder; give the one of PandaSet's scenes" >&2; exit 2; fi
prepare

if [ $# -eq 1 ]; then
  root=$1
else
  root=$out/scenes
  step synth flux4d synth "$root" --scenes 1 --first 2 --frames 16 --width 320 --columns 900 ${SYNTH_OPTIONS:-}
fi

index=$out/clips.json
step index       flux4d index --data-root "$root" --out-full "$index"
step vis-lift    flux4d vis-lift --index-path "$index" --clip-index "$clip" --out-dir "$out/lift"
# the network that ships would do by itself (reconstruct without --ckpt); a few steps on the clip sharpen it
step overfit     flux4d overfit --index-path "$index" --clip-index "$clip" --output-dir "$out/overfit" \
                   --init shipped --iters 80 --max-gaussians 60000 ${OVERFIT_OPTIONS:-}
ckpt=$out/overfit/ckpt_last.pt
step eval        flux4d eval --index-path "$index" --clip-index "$clip" --ckpt "$ckpt" --out-dir "$out/eval" --save-renders
step reconstruct flux4d reconstruct --index-path "$index" --clip-index "$clip" --ckpt "$ckpt" --out-dir "$out/scene"

python "$here/driving_summary.py" "$out"
