"""Settings of a training run: presets, files, overrides, and errors that name the rule."""

from __future__ import annotations

import pytest

from models.errors import ConfigError, UnknownChoice
from pipelines.config.loader import PRESETS, config_from_toml, config_to_toml, load_config
from pipelines.config.schema import PhaseConfig, TrainConfig

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
    config = load_config(path, {"seed": 9, "backbone": None})
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
        load_config(path, {})


def test_unknown_names(tmp_path):
    with pytest.raises(UnknownChoice, match="efficientnet_lite0"):
        load_config(None, {"backbone": "vgg"})
    with pytest.raises(UnknownChoice, match="none"):
        load_config(None, {"weights": "coco"})
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "none.toml", {})
    with pytest.raises(UnknownChoice, match=r"layer4\.0"):
        TrainConfig(backbone="resnet18", phases=(PhaseConfig("a", "layer9", 1, 0.1),))
    with pytest.raises(ConfigError, match="seed is -1"):
        load_config(None, {"seed": -1})
    (tmp_path / "latin.toml").write_bytes(b"# \xff")
    with pytest.raises(ConfigError, match="not TOML"):
        load_config(tmp_path / "latin.toml", {})
    assert load_config(None, {}) == TrainConfig()


def test_one_setting_at_a_time(tmp_path):
    config = load_config(
        None,
        settings=[
            "phases.head.epochs=3",
            "phases.2.rate=1e-4",
            "augmentation.flip=false",
            "backbone=resnet18",
            "cache_gb=0.5",
        ],
    )
    assert (config.phases[0].epochs, config.phases[1].rate) == (3, 1e-4)
    assert (config.augmentation.flip, config.backbone, config.cache_gb) == (False, "resnet18", 0.5)
    for setting, says in (
        ("phases.tail.epochs=3", "'tail'.*head, top blocks, 1, 2"),
        ("phases.head.lr=3", "'lr'.*a phase.*rate"),
        ("zoom=3", "'zoom'.*backbone"),
        ("seed", "name=value"),
        ("phases.head=3", "phases.NAME.setting"),
        ("seed=nine", "seed must be of type int, not 'nine'"),
        ("augmentation.zoom=1", "'zoom'.*augmentation"),
    ):
        with pytest.raises((ConfigError, UnknownChoice), match=says):
            load_config(None, settings=[setting])


def test_presets_are_a_start_that_everything_else_wins_over(tmp_path):
    assert load_config(preset="default") == TrainConfig()
    quick, thorough = load_config(preset="quick"), load_config(preset="thorough")
    assert [phase.name for phase in quick.phases] == ["head"]
    assert thorough.phases[1].ema_decay > 0
    assert thorough.augmentation.shift > 0
    path = tmp_path / "c.toml"
    path.write_text('preset = "thorough"\nviews = 3\n[augmentation]\nflip = false\n')
    config = load_config(path, settings=["phases.head.epochs=1"])
    assert (config.views, config.augmentation.flip, config.phases[0].epochs) == (3, False, 1)
    assert config.augmentation.shift == thorough.augmentation.shift
    assert load_config(preset="thorough").phases[0].epochs == PRESETS["thorough"]["phases"][0]["epochs"], (
        "untouched"
    )
    with pytest.raises(UnknownChoice, match="quick, default, thorough"):
        load_config(preset="fast")


@pytest.mark.parametrize("preset", list(PRESETS))
def test_a_config_survives_its_own_toml(preset):
    config = load_config(
        preset=preset, settings=["phases.1.train_from=all", "seed=5", "phases.1.name=first part"]
    )
    assert config_from_toml(config_to_toml(config)) == config


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("phases.1.schedule=linear", "cosine, one_cycle, constant"),
        ("phases.1.batch_norm=eval", "frozen, trained"),
        ("phases.1.precision=float16", "float32, bfloat16"),
        ("phases.1.cutmix=1.0", "cuts maps"),
        ("phases.1.name=a/b", "a phase's name is 'a/b'; it must be letters"),
        ("phases.1.patience=-1", "patience is -1"),
        ("phases.1.rate=nan", "rate is nan"),
        ("phases.1.ema_decay=1.0", "below 1"),
        ("phases.1.label_smoothing=1.0", "below 1"),
        ("phases.1.train_from=layer9", "top blocks, all"),
        ("class_weights=some", "none, balanced"),
        ("task=regression", "multiclass, binary, multilabel"),
        ("augmentation.shear_degrees=90", "from 0 to 45"),
        ("augmentation.erase=0.9", "from 0 to 0.5"),
    ],
)
def test_each_setting_has_its_rule(setting, says):
    with pytest.raises((ConfigError, UnknownChoice), match=says):
        load_config(None, settings=[setting])
