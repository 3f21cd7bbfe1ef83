#!/usr/bin/env bash
# From a phone video with the flash on to a relightable face with eyeballs.
#
#   demo/phone_flash.sh [VIDEO]      run it as: uv run --all-packages bash demo/phone_flash.sh
#
# VIDEO: about 20 seconds round a face at rest, in a dim room, with the flash on. Without VIDEO it films a synthetic
# head with known truth. Everything goes under $OUT (default out/phone), which must not exist yet. $SYNTH_OPTIONS,
# $FRAMES_OPTIONS (default --sharpest 3), $TRACK_OPTIONS (default --photometric), $IMPORT_OPTIONS (default --poses auto),
# $TRAIN_OPTIONS, $EXPORT_OPTIONS, $METRICS_OPTIONS and $RELIGHT_OPTIONS are added to the commands as they are. Where the
# focal length is known in pixels, say so: TRACK_OPTIONS="--photometric --focal 1450".
set -euo pipefail

out=${OUT:-out/phone}
source "$(dirname "$0")/steps.sh"

one_video "a synthetic one" "a video with the flash on" "$@"
prepare

truth=()
if [ $# -eq 1 ]; then
  video=$1
else
  step synth eyeball-relight synth "$out/phone" --video ${SYNTH_OPTIONS:-}
  video=$out/phone/video.mp4
  truth=(--truth "$out/phone")
fi

follow() { # follow STEP OPTIONS...: the head in every frame
  step "$1" flame-encoder track "$out/clip/frames" --landmarks "$out/clip/landmarks" --out "$out/tracked" \
    --no-preview "${@:2}" ${TRACK_OPTIONS---photometric}
}
gather() { # gather STEP OPTIONS...: a capture of the frames that will do
  step "$1" eyeball-relight import "$out/tracked" "$out/data" --landmarks "$out/clip/landmarks" "${@:2}" \
    ${IMPORT_OPTIONS---poses auto}
}

# The head in every sharp frame, and what belongs to it
step frames    prep-faces frames "$video" --out "$out/clip" ${FRAMES_OPTIONS---sharpest 3}
step landmarks prep-faces landmarks "$out/clip/frames" --out "$out/clip"
follow track
step matte     prep-faces matte "$out/clip/frames" --track "$out/tracked/track.npz" --out "$out/tracked/images"

# The face under its light
gather import
focal=$(python -c 'import json, sys; d = json.load(open(sys.argv[1])); print("" if d["poses"] != "track" else d.get("focal", ""))' \
  "$out/import.json")
if [ -n "$focal" ]; then # structure from motion knows it better than the track
  follow retrack --focal "$focal" --force
  gather reimport --force
fi
step train     eyeball-relight train --config-path "$out/data/config.yaml" --preset cpu-fine --workspace "$out/run" \
                 ${TRAIN_OPTIONS:-}
step export    eyeball-relight export --config-path "$out/data/config.yaml" --ckpt-path "$out/run/latest.pth" \
                 --save-visual-dir "$out/asset" ${EXPORT_OPTIONS:-}
step metrics   eyeball-relight metrics "$out/asset" --data-root "$out/data" --align \
                 ${truth[@]+"${truth[@]}"} ${METRICS_OPTIONS:-}
step relight   eyeball-relight relight "$out/asset" "$out/relit.mp4" ${RELIGHT_OPTIONS:-}

python "$here/relight_summary.py" "$out"
