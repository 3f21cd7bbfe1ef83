#!/usr/bin/env bash
# From frames of faces to the CSV of a micro-expression challenge, on synthetic people whose emotions are known.
#
#   demo/challenge_submission.sh      run it as: uv run --all-packages bash demo/challenge_submission.sh
#
# Everything goes under $OUT (default out/challenge), which must not exist yet. $SYNTH_OPTIONS are added to the command
# synth as they are, $EPOCHS is the number of training epochs. The model reads the coefficients of flame-encoder's tracker
# and the crops (model.streams of synth's exp.yaml), not the true coefficients that synth writes.
set -euo pipefail

out=${OUT:-out/challenge}
source "$(dirname "$0")/steps.sh"

if [ $# -gt 0 ]; then echo "error: this demo takes no arguments; set OUT, SYNTH_OPTIONS or EPOCHS" >&2; exit 2; fi
prepare

data=$out/data
step synth feat-extract synth "$data" ${SYNTH_OPTIONS:-}
config=$data/exp.yaml
if [ -n "${EPOCHS:-}" ]; then echo "train: {epochs: $EPOCHS}" >> "$config"; fi

step crop     prep-faces crop --config "$config"
step feat2d   feat-extract feat2d --config "$config"
pictures=$data/data/inference_artifacts/dataset/original_image
step landmarks prep-faces landmarks "$pictures" --out "$out/marks"
step track    flame-encoder track-clips "$pictures" --landmarks "$out/marks/landmarks" --out "$(dirname "$pictures")/tracked"
step feat3d   feat-extract feat3d --config "$config"
step train    feat-extract train --config "$config"
step check    feat-extract check --config "$config"
step submit   feat-extract submit --config "$config"
step evaluate feat-extract evaluate --config "$config"

python "$here/challenge_summary.py" "$out"
