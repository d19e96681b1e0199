#!/usr/bin/env bash
# How the shipped `light` was made, from nothing to evaluation: about two hours on two CPU cores, most of it rendering
# and features. Everything resumes when it is run again.
#
#   training/recipes/light_v1.sh MOCAP COCO_PEOPLE_JSON [OUT]
#
# MOCAP: recordings, see training/README.md. The shipped run had 26,000 renders of two seeds, as here.
set -euo pipefail
mocap=$1 photos=$2 out=${3:-out/light_v1}
python=${PYTHON:-python}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

render() { # folder, seed, count, further options
	$python -m training.render --out "$out/$1" --seed "$2" --count "$3" --motion-capture "$mocap" \
		--background-people "$photos" "${@:4}"
}
features() { # folder, further options
	$python -m training.cache_features --backbone movenet_lightning --out "$out/features/$1" "${@:2}"
}
train() { # folder, configuration, further options; resumes a run that was stopped
	local run=$out/$1 config=$2
	shift 2
	if [ -e "$run/checkpoint.pt" ]; then
		$python -m training.train --out "$run" --resume
	else
		$python -m training.train --out "$run" --config "$config" "${network[@]}" "${data[@]}" "$@"
	fi
}

render renders_1 1 14000
render renders_2 2 12000
render held_out 3 500 --split held_out
features renders_1 --rendered "$out/renders_1"
features renders_2 --rendered "$out/renders_2"
features held_out --rendered "$out/held_out"
features photos --coco "$photos" --split train --views 2

network=(network.backbone=movenet_lightning network.dim=64 network.layers=2 network.ffn=128 network.points=1
	"network.maps=[8,16,32]" network.regressor_hidden=384 network.dropout=0.1)
renders="[$out/features/renders_1,$out/features/renders_2]"
data=(poses.motion_capture="$mocap" "poses.errors=$renders" "rendered.caches=$renders"
	"real.caches=[$out/features/photos]" "validation.caches=[$out/features/held_out]")

# The shipped run's first stage was 1,285 steps of a schedule of 5,000 (poses 0.6), and 2,400 of its own from there.
train regressor training/configs/regressor.yaml poses.fraction=0.5 rendered.fraction=0.4 real.fraction=0.1 \
	loss.edges=0 loss.normals=0 steps=3600 validation.every=1200 optimizer.warmup=100 optimizer.ema=0.997
train decoder training/configs/small.yaml init="$out/regressor/model.safetensors" network.attention=tiles \
	poses.fraction=0.4 rendered.fraction=0.45 real.fraction=0.15 batch_size=80 precision=bfloat16 steps=400 \
	validation.every=200 validation.poses=256 optimizer.learning_rate=1.0e-3 optimizer.warmup=30 optimizer.ema=0.98 \
	optimizer.regressor_rate=0.3
$python -m training.evaluate --checkpoint "$out/decoder/best.safetensors" --out "$out/evaluate.json"
