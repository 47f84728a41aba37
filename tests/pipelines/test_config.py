from __future__ import annotations

import pytest

from models.errors import ConfigError, UnknownChoice
from pipelines.config import PhaseConfig, TrainConfig, load

TOML = """
backbone = "resnet18"
seed = 7
[augmentation]
flip = false
[[phases]]
name = "head"
train_from = "head"
epochs = 2
rate = 0.01
[[phases]]
name = "more"
train_from = "top blocks"
epochs = 3
rate = 0.001
block_decay = 0.5
"""


def test_a_file_and_the_command_line_make_one_config(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text(TOML)
    config = load(path, {"seed": 9, "backbone": None})
    assert (config.backbone, config.seed, config.augmentation.flip) == ("resnet18", 9, False)
    assert [phase.train_from for phase in config.phases] == ["head", "layer4.0"], (
        "top blocks are the backbone's own"
    )
    assert config.flat()["phase2.block_decay"] == 0.5
    assert config.flat()["augmentation.flip"] is False


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("sed = 1", "'sed'.*choose from.*seed"),
        ("[[phases]]\nname='a'\ntrain_from='head'\nepochs=1\nrate=0.1\nlr=1", "'lr'.*a phase.*rate"),
        ("[augmentation]\nzoom=1", "'zoom'.*augmentation.*min_crop_area"),
        ("seed = '1'", "seed must be of type int"),
        ("seed = true", "seed must be of type int"),
        ("batch_size = 1", "batch_size is 1; it must be at least 2"),
        ("[[phases]]\nname='a'\ntrain_from='head'\nepochs=0\nrate=0.1", "epochs is 0"),
        ("[[phases]]\nname='a'", "not complete"),
        ("phases = []", "at least one phase"),
        ("not toml", "not TOML"),
    ],
)
def test_mistakes_name_the_value_the_rule_and_the_choices(tmp_path, text, says):
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=says):
        load(path, {})


def test_unknown_names(tmp_path):
    with pytest.raises(UnknownChoice, match="efficientnet_lite0"):
        load(None, {"backbone": "vgg"})
    with pytest.raises(UnknownChoice, match="none"):
        load(None, {"weights": "coco"})
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path / "none.toml", {})
    with pytest.raises(UnknownChoice, match=r"layer4\.0"):
        TrainConfig(backbone="resnet18", phases=(PhaseConfig("a", "layer9", 1, 0.1),))
    with pytest.raises(ConfigError, match="seed is -1"):
        load(None, {"seed": -1})
    (tmp_path / "latin.toml").write_bytes(b"# \xff")
    with pytest.raises(ConfigError, match="not TOML"):
        load(tmp_path / "latin.toml", {})
    assert load(None, {}) == TrainConfig()
