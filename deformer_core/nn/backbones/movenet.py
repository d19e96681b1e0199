"""MoveNet, a pose network pretrained on COCO and more, as a feature pyramid.

MobileNetV2 encoder (Sandler et al., CVPR 2018), a light feature pyramid (Lin et al., CVPR 2017) and the four
CenterNet heads (Zhou et al., "Objects as Points", 2019) of Google's MoveNet SinglePose, version 4. Batch
normalisation is folded into the convolutions, as in the published inference weights (Apache-2.0).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from deformer_core.errors import InputError
from deformer_core.nn.backbones import Backbone, BackboneOutput
from deformer_core.nn.backbones.keypoint_loss import bumps, focal_loss
from deformer_core.weights import weight_path

NUM_KEYPOINTS = 17
FPN_CHANNELS = (64, 32, 24)
LAST_CHANNELS = 1280
REGRESSION_SHARE = 0.1
"""Weight of the rough places, which only choose among peaks; CenterNet's of sizes."""
SIGMA = 1.2
"""Of the heads' peaks, cells: as measured on the published network."""
STAGES = ((16, 1, 1), (24, 2, 2), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))
"""Channels at width 1, blocks and first stride of each MobileNetV2 stage."""


@dataclass(frozen=True)
class Variant:
    """Width multiplier and crop side in pixels of one published model."""

    width: float
    image_size: int

    def channels(self, base: int) -> int:
        """Scaled channel count: the multiple of 8 nearest to base * width (never below 90 % of it)."""
        scaled = base * self.width
        rounded = max(8, int(scaled + 4) // 8 * 8)
        return rounded if rounded >= 0.9 * scaled else rounded + 8


VARIANTS = {"movenet_thunder": Variant(1.75, 256), "movenet_lightning": Variant(1.0, 192)}


class SameConv2d(nn.Conv2d):
    """Convolution padded like TensorFlow's SAME on even sizes: stride 2 pads only on the right and below."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, bias: bool = True
    ):
        padding = kernel // 2 if stride == 1 else 0
        super().__init__(inputs, outputs, kernel, stride, padding, groups=groups, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.stride[0] == 1:
            return super().forward(x)
        x = F.pad(x, (0, 1, 0, 1))
        if self.groups > 1 and x.requires_grad and x.device.type == "cpu":
            # oneDNN goes back through a strided depthwise convolution ten times slower in bfloat16 than in float32.
            with torch.autocast("cpu", enabled=False):
                return super().forward(x.to(self.weight.dtype))
        return super().forward(x)


class InvertedResidual(nn.Module):
    """MobileNetV2 block: widen, filter each channel, narrow; added to its input where the shapes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int):
        super().__init__()
        hidden = inputs * expansion
        self.residual = stride == 1 and inputs == outputs
        self.expand = SameConv2d(inputs, hidden, 1) if expansion > 1 else None
        self.depthwise = SameConv2d(hidden, hidden, 3, stride, groups=hidden)
        self.project = SameConv2d(hidden, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = x if self.expand is None else F.relu6(self.expand(x))
        out = self.project(F.relu6(self.depthwise(hidden)))
        return x + out if self.residual else out


class Encoder(nn.Module):
    """MobileNetV2: maps of strides 4, 8, 16 (one for the pyramid, a deeper one beside it) and 32."""

    TAPS = (1, 2, 3, 4)  # the stages whose results leave the encoder, beside the last map

    def __init__(self, variant: Variant):
        super().__init__()
        width = variant.channels(32)
        self.stem = SameConv2d(3, width, 3, stride=2)
        stages = []
        self.channels = []
        for index, (base, repeats, stride) in enumerate(STAGES):
            outputs = variant.channels(base)
            blocks = []
            for repeat in range(repeats):
                blocks.append(InvertedResidual(width, outputs, 1 if repeat else stride, 6 if index else 1))
                width = outputs
            stages.append(nn.Sequential(*blocks))
            if index in self.TAPS:
                self.channels.append(outputs)
        self.stages = nn.ModuleList(stages)
        self.last = SameConv2d(width, LAST_CHANNELS, 1)
        self.channels.append(LAST_CHANNELS)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = F.relu6(self.stem(x))
        taps = []
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index in self.TAPS:
                taps.append(x)
        return [*taps, F.relu6(self.last(x))]


def separable(inputs: int, outputs: int) -> nn.Sequential:
    """3x3 filter per channel, 1x1 mix, ReLU."""
    return nn.Sequential(
        SameConv2d(inputs, inputs, 3, groups=inputs, bias=False), SameConv2d(inputs, outputs, 1), nn.ReLU()
    )


class FeaturePyramid(nn.Module):
    """Top-down pyramid, stride 32 to 4: each level is doubled in size, joined by a lateral, and filtered."""

    def __init__(self, inputs: tuple[int, int, int, int]):
        """Channels of the encoder's maps at strides 4, 8, 16, 32."""
        super().__init__()
        wide, middle, narrow = FPN_CHANNELS
        self.top = SameConv2d(inputs[3], wide, 1)
        laterals = ((inputs[2], wide), (inputs[1], middle), (inputs[0], narrow))
        self.laterals = nn.ModuleList([SameConv2d(*channels, 1) for channels in laterals])
        self.filters = nn.ModuleList(
            [separable(wide, middle), separable(middle, narrow), separable(narrow, narrow)]
        )

    def forward(self, stride4: Tensor, stride8: Tensor, stride16: Tensor, stride32: Tensor) -> list[Tensor]:
        """Maps at strides 16, 8, 4."""
        x, maps = self.top(stride32), []
        encoded = (stride16, stride8, stride4)
        for lateral, separable_filter, beside in zip(self.laterals, self.filters, encoded, strict=True):
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False) + lateral(beside)
            x = separable_filter(x)
            maps.append(x)
        return maps


def head(inputs: int, outputs: int) -> nn.Sequential:
    """Separable filter to 96 channels, then a 1x1 read-out."""
    return nn.Sequential(separable(inputs, 96), SameConv2d(96, outputs, 1))


def nearness(rows: Tensor, columns: Tensor) -> Tensor:
    """MoveNet's weight of a peak so many map cells away: a near peak beats a far, somewhat higher one."""
    return 1 / ((rows.square() + columns.square()).sqrt() + 1.8)


def pick(vectors: Tensor, cells: Tensor) -> tuple[Tensor, ...]:
    """Row and column parts (B, 17, 1) of a map (B, 34, H, W) at one flat cell (B, 17, 1) per keypoint."""
    vectors = vectors.flatten(2).unflatten(1, (NUM_KEYPOINTS, 2))
    return vectors.gather(3, cells[:, :, None].expand(-1, -1, 2, -1)).unbind(2)


def cell_places(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Row and column of every cell of a map, flat, float32."""
    rows = torch.arange(height, device=device, dtype=torch.float32).repeat_interleave(width)
    return rows, torch.arange(width, device=device, dtype=torch.float32).repeat(height)


class MoveNet(Backbone):
    """MoveNet SinglePose as a backbone.

    Maps: the pyramid's at strides 4 and 8; at stride 16 the pyramid's and the encoder's last, concatenated;
    at stride 32 the encoder's 1280 channels, whose mean is the global vector.
    """

    def __init__(self, variant: Variant):
        super().__init__()
        self.image_size = variant.image_size
        self.encoder = Encoder(variant)
        stride4, stride8, stride16, deep16, stride32 = self.encoder.channels
        self.pyramid = FeaturePyramid((stride4, stride8, stride16, stride32))
        middle, narrow = FPN_CHANNELS[1:]
        self.heads = nn.ModuleDict(
            {
                "center": head(narrow, 1),
                "heatmap": head(narrow, NUM_KEYPOINTS),
                "regression": head(narrow, 2 * NUM_KEYPOINTS),
                "offset": head(narrow, 2 * NUM_KEYPOINTS),
            }
        )
        self.channels = (narrow, narrow, middle + deep16, stride32)
        self.pooled_channels = stride32

    def forward(self, images: Tensor) -> BackboneOutput:
        maps = self.features(images)
        heads = tuple(head(maps[0]) for head in self.heads.values())
        return BackboneOutput(maps, maps[3].mean((2, 3)), decode_keypoints(*heads), heads)

    def keypoint_loss(self, features: BackboneOutput, uv: Tensor, weight: Tensor) -> Tensor:
        center, heatmap, regression, offset = features.heads
        return center_loss(center, heatmap, regression, offset, uv, weight)

    def features(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Maps at strides 4, 8, 16, 32 of images (B, 3, H, W), RGB in 0..255.

        Raises:
            InputError: H or W is not a multiple of 32.
        """
        height, width = images.shape[-2:]
        if height % 32 or width % 32:
            raise InputError(
                f"the backbone got images of {width}x{height} pixels: both sides must be multiples of 32"
            )
        stride4, stride8, stride16, deep16, stride32 = self.encoder(images * (2 / 255) - 1)
        pyramid16, pyramid8, pyramid4 = self.pyramid(stride4, stride8, stride16, stride32)
        return pyramid4, pyramid8, torch.cat((pyramid16, deep16), 1), stride32


def decode_keypoints(center: Tensor, heatmap: Tensor, regression: Tensor, offset: Tensor) -> Tensor:
    """Keypoints (B, 17, 3) of the person nearest the middle, from the heads' maps (B, C, H, W).

    1. The peak of the centre heatmap, weighted towards the middle, is the person; the regression there
       gives each keypoint's rough place.
    2. The peak of its heatmap, weighted towards that place, gives its cell; the offset, the place in it.
    """
    height, width = center.shape[-2:]
    rows, columns = cell_places(height, width, center.device)
    person = (center.sigmoid().flatten(1) * nearness(rows - height / 2, columns - width / 2)).argmax(1)
    person = person[:, None, None].expand(-1, NUM_KEYPOINTS, -1)
    row_shift, column_shift = pick(regression, person)

    heatmaps = heatmap.sigmoid().flatten(2)
    near = nearness(rows - rows[person] - row_shift, columns - columns[person] - column_shift)
    cells = (heatmaps * near).argmax(2, keepdim=True)
    row_offset, column_offset = pick(offset, cells)
    x = (columns[cells] + column_offset) * (2 / width) - 1
    y = (rows[cells] + row_offset) * (2 / height) - 1
    return torch.cat((x, y, heatmaps.gather(2, cells)), 2)


def center_loss(
    center: Tensor, heatmap: Tensor, regression: Tensor, offset: Tensor, uv: Tensor, weight: Tensor
) -> Tensor:
    """CenterNet's loss of the four heads, (B,), on the cells that `decode_keypoints` reads.

    Focal loss of the heatmaps and of the person's centre (the mean of its keypoints in the crop), L1 in cells of the
    regression at the centre and of the offsets at the keypoints. Keypoints outside the crop have empty heatmaps.
    uv: (B, 17, 2) crop coordinates; weight: (B, 17).
    """
    center, heatmap, regression, offset = (head.float() for head in (center, heatmap, regression, offset))
    height, width = center.shape[-2:]
    size = uv.new_tensor([width, height])
    place = (uv + 1) / 2 * size
    labelled = (weight > 0).to(uv)
    inside = labelled * ((place > 0) & (place < size)).all(-1)
    person = (place * inside[..., None]).sum(1, keepdim=True) / inside.sum(1).clamp(min=1)[:, None, None]
    present = (inside.sum(1, keepdim=True) > 0).to(uv)

    peaks = focal_loss(heatmap, bumps(place.floor(), inside, height, width, SIGMA))
    losses = focal_loss(center, bumps(person.floor(), present, height, width, SIGMA))[:, 0]
    losses = losses + (peaks * labelled).sum(1) / labelled.sum(1).clamp(min=1)
    for vectors, origin, counted in ((regression, person.expand_as(place), labelled), (offset, place, inside)):
        column, row = origin.floor().long().unbind(-1)
        cells = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
        rows, columns = pick(vectors, cells[..., None])
        error = (torch.cat((columns, rows), -1) + origin.floor() - place).abs().sum(-1)
        share = 1.0 if vectors is offset else REGRESSION_SHARE
        losses = losses + share * (error * counted * present).sum(1) / counted.sum(1).clamp(min=1)
    return losses


def build_movenet(name: str, pretrained: bool) -> MoveNet:
    """MoveNet by its name in `VARIANTS`, in evaluation mode."""
    model = MoveNet(VARIANTS[name])
    if pretrained:
        weights = load_file(weight_path(f"{name}.safetensors"))
        model.load_state_dict({key: value.float() for key, value in weights.items()})
    return model.eval()
