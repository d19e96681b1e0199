"""Checkpoints: what goes in comes out, and every way in which one can be wrong has its sentence."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from deformer_core.checkpoint import checkpoint_path, load_checkpoint, read_checkpoint_info, save_checkpoint
from deformer_core.errors import InputError
from deformer_core.weights import weight_path


def rewrite(checkpoint, target, change):
    """A copy of a checkpoint with its record and tensors changed in place by `change(record, tensors)`."""
    with safe_open(checkpoint, framework="pt") as file:
        record = json.loads(file.metadata()["deformer"])
    tensors = load_file(checkpoint)
    change(record, tensors)
    save_file(tensors, target, metadata={"deformer": json.dumps(record)})
    return target


def test_round_trip(model, checkpoint, body):
    info = read_checkpoint_info(checkpoint)
    assert (info.body_name, info.body_hash) == (body.name, body.content_hash)
    assert info.metrics == {"pa_mpjpe_mm": 123.0} and info.provenance == {"made by": "tests"}
    loaded = load_checkpoint(checkpoint)
    assert loaded.config == model.config and not loaded.training
    stored = loaded.state_dict()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(stored[name], tensor, rtol=1e-3, atol=1e-3 * float(tensor.abs().max()))


def test_size_is_two_bytes_a_parameter(model, checkpoint):
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert checkpoint.stat().st_size < 2.1 * parameters + 50_000


def test_what_16_bits_cannot_hold_stays_in_32(model, checkpoint, tmp_path):
    torch.manual_seed(1)
    changed = load_checkpoint(checkpoint)
    with torch.no_grad():
        changed.regressor.shape.bias.fill_(1e6)
        changed.regressor.camera.bias.copy_(torch.tensor([1e-9, 2e-9, -3e-9]))
    save_checkpoint(tmp_path / "a.safetensors", changed, {}, {})
    again = load_checkpoint(tmp_path / "a.safetensors")
    assert torch.equal(again.regressor.shape.bias, changed.regressor.shape.bias)
    assert torch.equal(again.regressor.camera.bias, changed.regressor.camera.bias)


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(InputError, match="there is no checkpoint .*absent.safetensors"):
        read_checkpoint_info(tmp_path / "absent.safetensors")
    with pytest.raises(InputError, match="no_such_model.safetensors is missing"):
        checkpoint_path("no_such_model")
    with pytest.raises(InputError, match="no DeFormer checkpoint"):
        load_checkpoint(weight_path("movenet_lightning.safetensors"))
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff" * 100)
    with pytest.raises(InputError, match="photo.jpg is cut off or corrupt"):
        load_checkpoint(tmp_path / "photo.jpg")


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.999])
def test_cut_off_files(checkpoint, tmp_path, kept):
    data = checkpoint.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(InputError, match="cut.safetensors is cut off or corrupt"):
        load_checkpoint(tmp_path / "cut.safetensors")


def test_another_body(checkpoint, tmp_path, body):
    path = rewrite(checkpoint, tmp_path / "a.safetensors", lambda record, _: record["body"].update(hash="0123"))
    with pytest.raises(InputError, match=f"a.safetensors was made for body .* 0123, but .*{body.content_hash}"):
        load_checkpoint(path)


def test_another_format_and_configuration(checkpoint, tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(InputError, match="has format 99"):
        load_checkpoint(rewrite(checkpoint, path, lambda record, _: record.update(format=99)))
    with pytest.raises(InputError, match="unknown configuration key 'wings'"):
        load_checkpoint(rewrite(checkpoint, path, lambda record, _: record["config"].update(wings=2)))
    with pytest.raises(InputError, match="tensors"):
        load_checkpoint(rewrite(checkpoint, path, lambda record, _: record["config"].update(layers=2)))


def test_tensors_that_do_not_fit(checkpoint, tmp_path):
    def change(_, tensors):
        del tensors["regressor.shape.bias"]
        tensors["wings"] = torch.zeros(2)
        tensors["regressor.camera.bias"] = torch.zeros(5)

    path = rewrite(checkpoint, tmp_path / "a.safetensors", change)
    with pytest.raises(InputError) as caught:
        load_checkpoint(path)
    for words in ("1 missing (regressor.shape.bias)", "1 unexpected (wings)", "1 of another shape (regressor.camera"):
        assert words in str(caught.value)


def test_a_failed_save_leaves_the_old_file(model, tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"old")
    with pytest.raises(TypeError):
        save_checkpoint(path, model, metrics={"not json": object()}, provenance={})
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write"):
        save_checkpoint(tmp_path / "file" / "a.safetensors", model, {}, {})
