"""Weights that were saved elsewhere: mended where it is safe, refused with names where it is not."""

from __future__ import annotations

import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from models.errors import ConfigError
from models.networks.registry import get_backbone
from models.networks.state_dicts import fit_state_dict, read_state_dict
from models.networks.transfer_model import TransferModel


class Net(nn.Module):
    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        self.fc = nn.Linear(8, classes)


def state(**options):
    torch.manual_seed(1)
    return Net(**options).state_dict()


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.backbone."])
def test_one_prefix_before_all_names_is_taken_off(prefix):
    fitted = fit_state_dict(Net(), {prefix + key: value for key, value in state().items()})
    assert all(torch.equal(fitted.state[key], value) for key, value in state().items())
    assert ("".join(fitted.notes) != "") == (prefix != "")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda inner: inner,
        lambda inner: {"state_dict": inner, "epoch": 3},
        lambda inner: {"model": {"state_dict": inner}, "optimizer": {}},
        lambda inner: {"model": {k: v * 0 for k, v in inner.items()}, "model_ema": inner},
    ],
)
def test_wrappers_are_opened_and_the_averaged_weights_are_taken(tmp_path, wrap):
    torch.save(wrap(state()), tmp_path / "w.pth")
    weights, _ = read_state_dict(tmp_path / "w.pth")
    assert all(torch.equal(weights[key], value) for key, value in state().items())


def test_safetensors_are_read(tmp_path):
    save_file(state(), tmp_path / "w.safetensors")
    weights, notes = read_state_dict(tmp_path / "w.safetensors")
    assert set(weights) == set(state())
    assert notes == ()


class Bomb:
    def __reduce__(self):
        return (open, ("exploded", "w"))


@pytest.mark.parametrize("content", [Net(), {"model": Net()}, Bomb()])
def test_a_pickled_module_is_refused_and_none_of_its_code_runs(tmp_path, content, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if isinstance(content, Bomb):
        (tmp_path / "w.pt").write_bytes(pickle.dumps(content))
    else:
        torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ConfigError, match=r"is not loaded|not a readable file of weights"):
        read_state_dict(tmp_path / "w.pt")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("data", [b"", b"not weights", b"PK\x03\x04 cut off"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_of_no_weights_is_a_sentence(tmp_path, data, suffix):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=f"w{suffix}"):
        read_state_dict(path)
    with pytest.raises(ConfigError, match="There is no file"):
        read_state_dict(tmp_path / f"none{suffix}")


def test_names_and_shapes_that_do_not_fit_are_named():
    lacking = {key: value for key, value in state().items() if key != "stem.0.bias"}
    with pytest.raises(ConfigError, match=r"lacks 1 weights of the network, such as stem\.0\.bias"):
        fit_state_dict(Net(), lacking)
    with pytest.raises(ConfigError, match=r"has 1 that the network lacks, such as neck\.weight"):
        fit_state_dict(Net(), state() | {"neck.weight": torch.zeros(2)})
    with pytest.raises(ConfigError, match=r"the file is for 4 classes, not for 5"):
        fit_state_dict(Net(5), state())


def test_a_classifier_for_other_classes_begins_anew_and_auxiliary_ones_are_left_out():
    saved = state() | {"aux_head.weight": torch.zeros(2)}
    fitted = fit_state_dict(Net(5), saved, replaceable=["fc.weight", "fc.bias"])
    assert fitted.state["fc.weight"].shape == (5, 8)
    assert torch.equal(fitted.state["stem.0.weight"], saved["stem.0.weight"])
    assert len(fitted.notes) == 2
    Net(5).load_state_dict(fitted.state, strict=True)


def test_training_begins_from_a_file_of_weights_for_other_classes(tmp_path):
    network = get_backbone("timm:resnet10t").network("none", 9)
    torch.save(
        {"state_dict": {"module." + k: v for k, v in network.state_dict().items()}}, tmp_path / "w.pth"
    )
    model = TransferModel.create("timm:resnet10t", ["a", "b"], pretraining=tmp_path / "w.pth")
    x = torch.randn(1, 3, 176, 176)
    assert model(x).shape == (1, 2)
    torch.testing.assert_close(model.until("layer4", x), network.forward_features(x), atol=1e-5, rtol=1e-5)
