#!/usr/bin/env bash
# Sit down before a camera: half a minute later a head follows you.
#
#   demo/live.sh [VIDEO]      run it as: uv run --all-packages bash demo/live.sh
#
# Without VIDEO a page asks the browser for its camera; VIDEO stands in for one, again and again. The second page that
# is named shows camera and avatar. Ctrl-C, or "Save and end" there, ends it; the avatar is $OUT/avatar/head/live, an
# ordinary run. $OUT (default out/live) must not exist yet. $PRESET (default cpu-online) is the training preset;
# $CAMERA_OPTIONS, $TRACK_OPTIONS and $TRAIN_OPTIONS (default --view) are added to the three commands as they are;
# $VIDEO_OPTIONS (default --realtime --loop) say how a VIDEO is shown.
set -euo pipefail

out=${OUT:-out/live}
source "$(dirname "$0")/steps.sh"

one_video "the browser's camera" "a video of a face" "$@"
prepare

if [ $# -eq 1 ]; then
  camera=("$1" ${VIDEO_OPTIONS---realtime --loop})
else
  camera=(browser)
fi

# One core each for finding the face and for tracking: threads that wait for each other would be in the way. One
# arena of glibc's takes less memory than one for each thread.
set +o pipefail  # the last command decides: it may be told to end, and then the others find nobody who reads
OMP_NUM_THREADS=1 prep-faces camera "${camera[@]}" ${CAMERA_OPTIONS:-} \
  | OMP_NUM_THREADS=1 flame-encoder track --stream - ${TRACK_OPTIONS:-} \
  | MALLOC_ARENA_MAX=1 gaussian-avatar train-online --stream - --subject head --work-name live --output-dir "$out/avatar" \
      --preset "${PRESET:-cpu-online}" ${TRAIN_OPTIONS---view} > "$out/live.json"

cat "$out/live.json"
