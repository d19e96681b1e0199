#!/usr/bin/env bash
# How the shipped `light` was made, from nothing to evaluation: about three hours on two CPU cores, most of it rendering
# and features. Everything resumes when it is run again.
#
#   training/recipes/light_v1.sh MOCAP COCO_PEOPLE_JSON CLOTHES [OUT]
#
# MOCAP: recordings; CLOTHES: MakeHuman's garments; see training/README.md.
set -euo pipefail
mocap=$1 photos=$2 clothes=$3 out=${4:-out/light_v1}
source "$(dirname "${BASH_SOURCE[0]}")/steps.sh"

features() { # folder, further options
	$python -m training.cache_features --backbone movenet_lightning --out "$out/features/$1" "${@:2}"
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

# 1. Everything but the backbone, on features. The shipped run's first stage was 1,285 steps of a schedule of 5,000
# (poses 0.6), and 2,400 of its own from there.
train 1 regressor "${network[@]}" --config training/configs/regressor.yaml "${data[@]}" poses.fraction=0.5 \
	rendered.fraction=0.4 real.fraction=0.1 loss.edges=0 loss.normals=0 steps=3600 \
	validation.every=1200 optimizer.warmup=100 optimizer.ema=0.997
train 1 decoder "${network[@]}" --config training/configs/small.yaml "${data[@]}" \
	init="$out/regressor/model.safetensors" network.attention=tiles poses.fraction=0.4 rendered.fraction=0.45 \
	real.fraction=0.15 batch_size=80 precision=bfloat16 steps=400 validation.every=200 \
	validation.poses=256 optimizer.learning_rate=1.0e-3 optimizer.warmup=30 optimizer.ema=0.98 optimizer.regressor_rate=0.3

# 2. The backbone from its stride 8 upwards, through the regressor, with a volume that joints are located in, blended with
# what it was before; then decoder and regressor on what it sees now. (As small_v1.sh, steps 7 and 8;
# the shipped run left a tenth of the photos out, for validation.)
render renders_5 5 14000 --clothes "$clothes"
for set in renders_1 renders_5 held_out; do pack "synthetic:$out/$set" "$set" --room 1 --size 256; done
pack "coco_people:$photos?split=train" photos
network+=(network.volume_width=128 network.attention=tiles)
changed="augmentation: {rolled: 0.3, roll: 15, scale: 0.12, shift: 0.03, gain: 0.5}"
sets="{path: $out/packed/renders_1, weight: 0.35, $changed}, {path: $out/packed/renders_5, weight: 0.35, $changed}"
images=(--config training/configs/images.yaml "streams.sets=[$sets, {path: $out/packed/photos, weight: 0.3, $changed}]"
	"validation.streams=[$out/packed/held_out]" validation.stream_people=300 poses.motion_capture="$mocap"
	accumulation=4 precision=bfloat16 streams.workers=0)
lower="backbone.encoder.stages"
train "$processes" backbone "${network[@]}" "${images[@]}" stage=regressor init="$out/decoder/best.safetensors" \
	steps=450 batch_size=72 poses.fraction=0.111112 streams.fraction=0.888888 \
	"optimizer.frozen=[backbone.encoder.stem,$lower.0,$lower.1,$lower.2]" optimizer.learning_rate=1.0e-3 \
	optimizer.regressor_rate=0.4 optimizer.backbone_rate=2 optimizer.backbone_relative=true optimizer.warmup=100 \
	optimizer.clip=5 optimizer.ema=0.99 loss.backbone_keypoints=0.2 loss.located_depth=30 loss.located_uv=12 \
	loss.joints=0 loss.joints_mesh=5 loss.vertices=5 loss.edges=0 loss.normals=0 validation.every=225
$python -m training.blend "$out/decoder/best.safetensors" "$out/backbone/model.safetensors" --share 0.65 \
	--out "$out/blend.safetensors"
train "$processes" decoder_2 "${network[@]}" "${images[@]}" stage=decoder init="$out/blend.safetensors" \
	steps=200 batch_size=80 poses.fraction=0.1 streams.fraction=0.9 optimizer.learning_rate=8.0e-4 optimizer.backbone_rate=0 \
	optimizer.regressor_rate=0.4 optimizer.warmup=15 optimizer.ema=0.97 loss.edges=60 loss.uv=4 loss.uv_only=4 \
	validation.every=100
$python -m training.evaluate --checkpoint "$out/decoder_2/model.safetensors" --out "$out/evaluate.json"
