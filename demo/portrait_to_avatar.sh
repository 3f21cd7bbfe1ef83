#!/usr/bin/env bash
# From a portrait video to an animatable head avatar.
#
#   demo/portrait_to_avatar.sh [VIDEO]      run it as: uv run --all-packages bash demo/portrait_to_avatar.sh
#
# Without VIDEO it films a synthetic head first. Everything goes under $OUT (default out/portrait), which must not
# exist yet. $PRESET (default cpu-quick) is the training preset; $TRAIN_OPTIONS, $SYNTH_OPTIONS and $TRACK_OPTIONS
# (default --photometric) are added to the commands train-offline, synth and track as they are.
set -euo pipefail

out=${OUT:-out/portrait}
preset=${PRESET:-cpu-quick}
source "$(dirname "$0")/steps.sh"

one_video "a synthetic capture" "a portrait video" "$@"
prepare

if [ $# -eq 1 ]; then
  video=$1
else
  step synth gaussian-avatar synth "$out/synthetic" --subject head ${SYNTH_OPTIONS:-}
  video=$out/synthetic/head/capture.mp4
fi

data=$out/data
step frames    prep-faces frames "$video" --out "$out/clip"
step landmarks prep-faces landmarks "$out/clip/frames" --out "$out/clip"
step track     flame-encoder track "$out/clip/frames" --landmarks "$out/clip/landmarks" --out "$data/head" \
                 ${TRACK_OPTIONS---photometric}
step matte     prep-faces matte "$out/clip/frames" --track "$data/head/track.npz" --out "$data/head/images"
step train     gaussian-avatar train-offline --data-dir "$data" --subject head --work-name demo \
                 --output-dir "$out/avatar" --preset "$preset" ${TRAIN_OPTIONS:-}
step metrics   gaussian-avatar metrics --subject head --work-name demo --output-dir "$out/avatar"
step render    gaussian-avatar render --subject head --work-name demo --output-dir "$out/avatar" --turn 60

python "$here/summary.py" "$out"
