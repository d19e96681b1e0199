"""The model's configuration. A key that the paper does not fix is our choice, and says so."""

from __future__ import annotations

from dataclasses import dataclass, field

from deformer_core.body.topology import LEVELS
from deformer_core.errors import InputError
from deformer_core.nn.deformable_attention import SAMPLERS
from deformer_core.nn.sparse_attention import BACKENDS

STRIDES = (4, 8, 16, 32)


@dataclass(frozen=True)
class DeFormerConfig:
    """Everything that fixes the model's architecture. Errors: `InputError` for a value that cannot be."""

    body: str = "anny"
    """A name or path for `load_body`."""
    backbone: str = "movenet_thunder"
    """A name for `build_backbone`."""
    backbone_weights: str | None = field(default=None, compare=False)
    """File of published weights that the backbone of a new model starts from; a trained model holds its own."""
    image_size: int | None = None
    """Side of the square crops, pixels; the backbone's own by default."""
    image_width: int | None = None
    """Central columns of the crop that the backbone sees, all by default: 288 of 384 is its 384x288 input."""
    dim: int = 96
    """Width of the tokens. Our choice: the paper does not give it."""
    heads: int = 4
    """Our choice."""
    layers: int = 3
    """Decoder layers, as in the paper."""
    ffn: int = 192
    """Hidden width of the feed-forward networks. Our choice."""
    points: int = 2
    """Sampling points per head and map. Our choice."""
    rings: int = 2
    """Mesh edges that a vertex sees far in the SCAP. Our choice."""
    query_level: str = "coarse"
    """The mesh level whose vertices are queries: "coarse" as the paper's standard model, "full" its dense."""
    maps: tuple[int, ...] = STRIDES
    """Strides of the maps that are sampled; (16,) alone is the single-scale ablation."""
    sparse: bool = True
    """Off: every token attends to every other (ablation)."""
    feedback: bool = True
    """Off: reference points stay on the initial reconstruction, one displacement at the end (ablation)."""
    correction: bool = True
    """Off: the finer meshes are the coarse one, upsampled by fixed weights alone (coarse-only ablation)."""
    checkpointing: bool = field(default=False, compare=False)
    """In training, decoder layers are computed again in the backward pass: less memory, more time, the same result."""
    attention: str = field(default="auto", compare=False)
    """How self-attention runs, with the same result: "dense"; "tiles"; "triton" (on a GPU, and tiles on a CPU); or
    "auto": dense for few tokens (up to about 500 on a CPU, 1,000 on a GPU), else triton where it is installed."""
    sampling: str = field(default="grid", compare=False)
    """How maps are sampled, with the same result: "grid"; "gather", for export; or "triton" (on a GPU, else grid)."""
    regressor_hidden: int = 512
    """Width of the initial regressor. Our choice, as are the next two."""
    regressor_blocks: int = 3
    pooled_features: int = 32
    """Numbers of the crop's global vector that the regressor sees beside the keypoints; 0 for none."""
    keypoint_features: int = 24
    """Numbers of the two deepest maps at each keypoint that the regressor sees; 0 for none. Our choice."""
    volume_width: int = 0
    """Width of the hidden map of the volume that joints are located in; 0 for none. Our choice, see `nn.volume`."""
    dropout: float = 0.1
    """In the regressor, in training. Our choice."""

    def __post_init__(self) -> None:
        if self.dim % self.heads:
            raise InputError(f"dim {self.dim} is not a multiple of heads {self.heads}: change one of them")
        if self.layers < 1 or self.points < 1 or self.rings < 1:
            raise InputError("layers, points and rings must be 1 or more")
        if not self.maps or not set(self.maps) <= set(STRIDES):
            raise InputError(f"maps {self.maps} must be strides out of {STRIDES}")
        size, width = self.image_size, self.image_width
        if any(pixels is not None and (pixels < 32 or pixels % 32) for pixels in (size, width)):
            raise InputError(f"image_size {size} and image_width {width} must be multiples of 32")
        if width is not None and (size is None or width > size):
            raise InputError(f"image_width {width} needs an image_size of as many pixels or more")
        for key, value, known in (
            ("attention", self.attention, BACKENDS),
            ("sampling", self.sampling, tuple(SAMPLERS)),
            ("query_level", self.query_level, LEVELS),
        ):
            if value not in known:
                raise InputError(f"unknown {key} '{value}': use one of {', '.join(known)}")

    @property
    def zoom(self) -> float:
        """Width of the crop over the width that the feature maps cover, 1 or more."""
        return self.image_size / self.image_width if self.image_size and self.image_width else 1.0
