#!/usr/bin/env bash
# From a flash capture to a relightable face with eyeballs, in two steps.
#
#   demo/relightable_face.sh [CAPTURE]      run it as: uv run --all-packages bash demo/relightable_face.sh
#
# Without CAPTURE, a folder in the layout of docs/formats.md, it makes a synthetic one with known truth. Everything
# goes under $OUT (default out/relight), which must not exist yet; a given capture is copied there. $SYNTH_OPTIONS,
# $FIRST_OPTIONS, $TRAIN_OPTIONS, $EXPORT_OPTIONS and $RELIGHT_OPTIONS are added to the commands as they are.
set -euo pipefail

out=${OUT:-out/relight}
source "$(dirname "$0")/steps.sh"

if [ $# -gt 1 ]; then echo "error: give one capture, or none for a synthetic one" >&2; exit 2; fi
if [ $# -eq 1 ] && [ ! -f "$1/transforms.json" ]; then
  echo "error: $1 has no transforms.json; give a capture, for example one of eyeball-relight import" >&2; exit 2
fi
prepare

data=$out/data
if [ $# -eq 1 ]; then
  cp -r "$1" "$data"
  rm -rf "$data/leye_mask" "$data/reye_mask"
else
  step synth eyeball-relight synth "$data" ${SYNTH_OPTIONS:-}
  rm -rf "$data/leye_mask" "$data/reye_mask" # the first step finds them
fi

# Step 1: one surface for everything, and where the eyes are on it
step landmarks prep-faces landmarks "$data/image" --out "$data"
step first     eyeball-relight train --config-path "$data/config_wo-hybrid.yaml" --preset cpu-first \
                 --workspace "$out/first" ${FIRST_OPTIONS:-}
step unwrap    eyeball-relight export --config-path "$data/config_wo-hybrid.yaml" --ckpt-path "$out/first/latest.pth" \
                 --save-visual-dir "$out/first/export" --faces 12000 ${EXPORT_OPTIONS:-}
step eyes      eyeball-relight eyeball-landmarks --data-root "$data" --asset "$out/first/export" \
                 --landmarks "$data/landmarks" --write "$data/config.yaml"
step masks     eyeball-relight render-eye-mask --data-root "$data" --mesh-uv-path "$out/first/export/mesh_uv.obj" --snap

# Step 2: face and eyeballs; fewer steps than the preset has, of more rays
step train     eyeball-relight train --config-path "$data/config.yaml" --workspace "$out/second" \
                 --set train.samples=6144 --set train.iterations=2100 --set train.mesh_render_iter=1600 \
                 --set train.milestones=[960,1280,1480] --set model.level_grow_iter=160 ${TRAIN_OPTIONS:-}
step export    eyeball-relight export --config-path "$data/config.yaml" --ckpt-path "$out/second/latest.pth" \
                 --save-visual-dir "$out/asset" ${EXPORT_OPTIONS:-}
step metrics   eyeball-relight metrics "$out/asset" --data-root "$data"
step relight   eyeball-relight relight "$out/asset" "$out/relit.mp4" ${RELIGHT_OPTIONS:-}

python "$here/relight_summary.py" "$out"
