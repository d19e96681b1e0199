#!/usr/bin/env bash
# How the shipped `small` is made, from nothing to evaluation: a day on two CPU cores, an hour or two on a GPU, most of it
# rendering and the backbone. Everything resumes when it is run again.
#
#   training/recipes/small_v1.sh MOCAP COCO_PEOPLE_JSON CLOTHES [OUT]
#
# MOCAP: recordings; CLOTHES: MakeHuman's garments; see training/README.md. The steps and amounts are those of the shipped
# run; what a longer run would give is not known. training/runs.md is the log of it.
set -euo pipefail
mocap=$1 photos=$2 clothes=$3 out=${4:-out/small_v1}
source "$(dirname "${BASH_SOURCE[0]}")/steps.sh"

features() { # folder, backbone, further options
	$python -m training.cache_features --backbone "$2" --out "$out/$1" "${@:3}"
}
all_features() { # folder, backbone
	features "$1/renders_1" "$2" --rendered "$out/renders_1"
	features "$1/renders_2" "$2" --rendered "$out/renders_2"
	features "$1/held_out" "$2" --rendered "$out/held_out"
	features "$1/photos" "$2" --coco "$photos" --split train --views 2
}
data() { # folder of features: what the stages on features are trained and validated on
	local renders="[$out/$1/renders_1,$out/$1/renders_2]"
	sources=(poses.motion_capture="$mocap" "poses.errors=$renders" "rendered.caches=$renders"
		"real.caches=[$out/$1/photos]" "validation.caches=[$out/$1/held_out]")
}

render renders_1 1 14000
render renders_2 2 12000
render held_out 3 500 --split held_out

# 1. The initial regressor, on the published backbone.
all_features published movenet_thunder
data published
train 1 regressor --config training/configs/regressor.yaml "${sources[@]}" poses.fraction=0.45 rendered.fraction=0.42 \
	real.fraction=0.13 loss.edges=0 loss.normals=0 steps=9000 optimizer.ema=0.997

# 2. The backbone from its stride 8 upwards, through the regressor and by its own keypoints.
for set in renders_1 renders_2 held_out; do pack "synthetic:$out/$set" "$set" --room 1 --size 256; done
pack "coco_people:$photos?split=train" photos
mild="augmentation: {rolled: 0.3, roll: 15, scale: 0.15, shift: 0.03, gain: 0.3}"
renders="{path: $out/packed/renders_1, weight: 0.36, $mild}, {path: $out/packed/renders_2, weight: 0.31, $mild}"
lower="backbone.encoder.stages"
train "$processes" backbone --config training/configs/images.yaml network.volume_width=0 stage=regressor \
	init="$out/regressor/best.safetensors" \
	"streams.sets=[$renders, {path: $out/packed/photos, weight: 0.33}]" "validation.streams=[$out/packed/held_out]" \
	poses.motion_capture="$mocap" "poses.errors=[$out/published/renders_1]" poses.fraction=0.33333 \
	streams.fraction=0.66667 "optimizer.frozen=[backbone.encoder.stem,$lower.0,$lower.1,$lower.2]" \
	optimizer.learning_rate=1.5e-4 optimizer.backbone_rate=0.5 optimizer.warmup=50 optimizer.ema=0.995 batch_size=96 \
	accumulation=4 precision=bfloat16 streams.workers=0 steps=1750 validation.every=350 validation.stream_people=300

# 3. Halfway between the backbone before and after: as good on renders, much better on photos.
$python -m training.blend "$out/regressor/best.safetensors" "$out/backbone/model.safetensors" --share 0.5 \
	--out "$out/blend.safetensors"

# 4. Regressor and decoder on the features of that. (The shipped run's decoder had 560 steps, and 440 more at 7e-4; its
# backbone 200 and 487 at rates up to 1e-4 and 1.5e-4, and 1,063 at 7.5e-5.)
all_features trained "$out/blend.safetensors"
data trained
train 1 regressor_2 --config training/configs/regressor.yaml init="$out/blend.safetensors" "${sources[@]}" \
	poses.fraction=0.35 rendered.fraction=0.5 real.fraction=0.15 loss.edges=0 loss.normals=0 steps=1600 \
	validation.every=800 validation.poses=256 optimizer.learning_rate=1.0e-3 optimizer.warmup=50 optimizer.ema=0.995
train 1 decoder --config training/configs/small.yaml init="$out/regressor_2/model.safetensors" "${sources[@]}" \
	network.attention=tiles poses.fraction=0.3 rendered.fraction=0.5 real.fraction=0.2 batch_size=80 \
	precision=bfloat16 steps=1000 validation.every=250 validation.poses=256 optimizer.learning_rate=1.0e-3 \
	optimizer.warmup=30 optimizer.ema=0.98 optimizer.regressor_rate=0.3

# 5. Once more on images, with more photos: the backbone through the regressor, blended as in 3, then decoder and
# regressor on what the backbone sees now. (The shipped run had the first 14,000 renders alone, a tenth of the photos left
# out, and crops scaled by 0.12 at the end.)
changed="augmentation: {rolled: 0.3, roll: 15, scale: 0.15, shift: 0.03, gain: 0.4}"
renders="{path: $out/packed/renders_1, weight: 0.3, $changed}, {path: $out/packed/renders_2, weight: 0.3, $changed}"
images=(--config training/configs/images.yaml "validation.streams=[$out/packed/held_out]" validation.stream_people=300
	poses.motion_capture="$mocap" batch_size=80 accumulation=4 precision=bfloat16 streams.workers=0 optimizer.warmup=20)
train "$processes" backbone_2 "${images[@]}" network.volume_width=0 stage=regressor init="$out/decoder/best.safetensors" \
	"streams.sets=[$renders, {path: $out/packed/photos, weight: 0.4, $changed}]" poses.fraction=0.2 streams.fraction=0.8 \
	"optimizer.frozen=[backbone.encoder.stem,$lower.0,$lower.1,$lower.2]" optimizer.learning_rate=1.5e-4 \
	optimizer.backbone_rate=0.5 optimizer.ema=0.99 steps=650 validation.every=325
$python -m training.blend "$out/decoder/best.safetensors" "$out/backbone_2/model.safetensors" --share 0.6 \
	--out "$out/blend_2.safetensors"
decoder() { # folder, what to start from, steps, learning rate, further options
	train "$processes" "$1" "${images[@]}" stage=decoder init="$2" steps="$3" optimizer.learning_rate="$4" \
		"streams.sets=[$renders, {path: $out/packed/photos, weight: 0.3, $changed}]" poses.fraction=0.1 \
		streams.fraction=0.9 optimizer.backbone_rate=0 optimizer.regressor_rate=0.3 optimizer.ema=0.985 \
		validation.every=80 "${@:5}"
}
decoder decoder_2 "$out/blend_2.safetensors" 170 5.0e-4 network.volume_width=0

# 6. Longer, the limbs' lengths and the joints' places in the picture weighing more. (The shipped run had 150 steps at 5e-4
# before these, with the weights as they were.)
weights=(loss.edges=60 loss.uv=4 loss.uv_only=4)
decoder decoder_3 "$out/decoder_2/model.safetensors" 320 4.0e-4 network.volume_width=0 "${weights[@]}"

# 7. A volume that joints are located in, which tells the backbone of depth, and garments: the backbone from stride 8 upwards
# once more, blended halfway with what it was, then decoder and regressor. (The shipped run had seeds 1 and 5 alone.)
render renders_5 5 14000 --clothes "$clothes"
pack "synthetic:$out/renders_5" renders_5 --room 1 --size 256
changed="augmentation: {rolled: 0.3, roll: 15, scale: 0.12, shift: 0.03, gain: 0.5}"
renders="{path: $out/packed/renders_1, weight: 0.32, $changed}, {path: $out/packed/renders_5, weight: 0.38, $changed}"
backbone() { # folder, what to start from, steps, further options
	train "$processes" "$1" "${images[@]}" stage=regressor init="$2" steps="$3" batch_size=72 \
		"streams.sets=[$renders, {path: $out/packed/photos, weight: 0.3, $changed}]" poses.fraction=0.111112 \
		streams.fraction=0.888888 "optimizer.frozen=[backbone.encoder.stem,$lower.0,$lower.1,$lower.2]" \
		optimizer.learning_rate=1.0e-3 optimizer.regressor_rate=0.2 optimizer.warmup=100 optimizer.clip=5 \
		optimizer.ema=0.99 loss.backbone_keypoints=0.2 loss.located_depth=30 loss.located_uv=12 loss.joints=0 \
		loss.joints_mesh=5 loss.vertices=5 loss.edges=0 loss.normals=0 validation.every=200 "${@:4}"
}
backbone backbone_3 "$out/decoder_3/model.safetensors" 820 optimizer.backbone_rate=0.08
$python -m training.blend "$out/decoder_3/model.safetensors" "$out/backbone_3/model.safetensors" --share 0.5 \
	--out "$out/blend_3.safetensors"
decoder decoder_4 "$out/blend_3.safetensors" 110 4.0e-4 optimizer.warmup=15 optimizer.ema=0.97 validation.every=110 \
	"${weights[@]}"

# 8. The backbone for longer, its steps shares of its weights' size.
backbone backbone_4 "$out/decoder_4/model.safetensors" 1400 optimizer.backbone_relative=true optimizer.backbone_rate=2
$python -m training.blend "$out/decoder_4/model.safetensors" "$out/backbone_4/model.safetensors" --share 0.65 \
	--out "$out/blend_4.safetensors"
decoder decoder_5 "$out/blend_4.safetensors" 150 4.0e-4 optimizer.warmup=15 optimizer.ema=0.97 validation.every=75 \
	"${weights[@]}"
$python -m training.evaluate --checkpoint "$out/decoder_5/model.safetensors" --out "$out/evaluate.json"
