"""The model's configuration. A key that the paper does not fix is our choice, and says so."""

from __future__ import annotations

from dataclasses import dataclass

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
    attention: str = "auto"
    """How self-attention runs, with the same result: "dense", "tiles" (trains 1.5 times as fast on a CPU), or
    "auto": dense up to about a thousand tokens."""
    sampling: str = "grid"
    """How maps are sampled, with the same result: "grid", or "gather" for export."""
    regressor_hidden: int = 512
    """Width of the initial regressor. Our choice, as are the next two."""
    regressor_blocks: int = 3
    pooled_features: int = 32
    """Numbers of the crop's global vector that the regressor sees beside the keypoints; 0 for none."""
    keypoint_features: int = 24
    """Numbers of the two deepest maps at each keypoint that the regressor sees; 0 for none. Our choice."""
    dropout: float = 0.1
    """In the regressor, in training. Our choice."""

    def __post_init__(self) -> None:
        if self.dim % self.heads:
            raise InputError(f"dim {self.dim} is not a multiple of heads {self.heads}: change one of them")
        if self.layers < 1 or self.points < 1 or self.rings < 1:
            raise InputError("layers, points and rings must be 1 or more")
        if not self.maps or not set(self.maps) <= set(STRIDES):
            raise InputError(f"maps {self.maps} must be strides out of {STRIDES}")
        for key, value, known in (
            ("attention", self.attention, BACKENDS),
            ("sampling", self.sampling, tuple(SAMPLERS)),
            ("query_level", self.query_level, LEVELS),
        ):
            if value not in known:
                raise InputError(f"unknown {key} '{value}': use one of {', '.join(known)}")
