"""Every configuration that is shipped can be read and built."""

from pathlib import Path

import pytest
import torch

from deformer_core.body.topology import BodyTopology
from deformer_core.checkpoint import load_checkpoint
from deformer_core.nn.deformer import DeFormer, configured_backbone
from deformer_core.training.settings import read_settings

CONFIGS = Path(__file__).parents[2] / "training" / "configs"
PAPER = ("r50", "hrnet_w48", "hrnet_w48_384x288", "hrnet_w48_dense", "hrformer", "aggpose")


@pytest.mark.parametrize("name", (*PAPER, "light"))
def test_they_are_read(name: str) -> None:
    config, mapping = read_settings(CONFIGS / f"{name}.yaml", [])
    with torch.device("meta"):
        backbone = configured_backbone(config.network, pretrained=False)
    assert backbone.image_size == mapping["network"].get("image_size", 192 if name == "light" else 256)
    if name in PAPER:
        assert config.network.backbone_weights and config.optimizer.backbone_rate == 1


@pytest.mark.parametrize(("name", "tokens"), [("hrnet_w48_384x288", 638), ("hrnet_w48_dense", 12295), ("light", 638)])
def test_models_are_built(name: str, tokens: int, body: BodyTopology) -> None:
    network = read_settings(CONFIGS / f"{name}.yaml", [])[0].network
    with torch.device("meta"):
        model = DeFormer(network, body, configured_backbone(network, pretrained=False))
    assert model.decoder.n_joints + len(model.decoder.vertex_slots) == tokens
    assert model.decoder.zoom == (384 / 288 if name == "hrnet_w48_384x288" else 1)


def test_images_start_from_the_whole_of_the_shipped_model() -> None:
    config, _ = read_settings(CONFIGS / "images.yaml", ["streams.sets=[{path: people}]"])
    assert config.init is not None and load_checkpoint(config.init).config == config.network


def test_light_is_the_network_of_the_shipped_one() -> None:
    config, _ = read_settings(CONFIGS / "light.yaml", [])
    assert load_checkpoint("light").config == config.network
