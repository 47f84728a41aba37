"""A policy is data: what it may say, and a sentence with the choices for what it may not."""

from __future__ import annotations

import pytest

from models.errors import ConfigError, UnknownChoice
from pipelines.release.policy import DEFAULT_POLICY, METRICS, Check, load_policy


def written(tmp_path, text):
    path = tmp_path / "policy.toml"
    path.write_text(text)
    return path


def test_a_file_of_checks_is_read(tmp_path):
    path = written(
        tmp_path,
        'too_small = "block"\n[[checks]]\nmetric = "accuracy"\ncompare = "champion"\nmargin = 0.01\n'
        '[[checks]]\nmetric = "recall"\nslice = "each class"\nmin = 0.5\nsplit = "test"\nseverity = "warn"\n',
    )
    policy = load_policy(path)
    assert policy.too_small == "block"
    assert policy.checks == (
        Check("accuracy", compare="champion", margin=0.01),
        Check("recall", slice="each class", min=0.5, split="test", severity="warn"),
    )
    assert policy.name == "policy.toml"
    assert policy.digest != DEFAULT_POLICY.digest
    assert load_policy(path).digest == policy.digest


def test_without_a_file_a_sensible_policy_holds():
    assert load_policy(None) is DEFAULT_POLICY
    blocking = {check.metric for check in DEFAULT_POLICY.checks if check.severity == "block"}
    assert {"accuracy", "worst_class_recall", "explanation_drift", "changed_classes"} <= blocking


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", r"at least one \[\[checks\]\]"),
        ("checks = 3", r"at least one \[\[checks\]\]"),
        ("not toml", "is not TOML"),
        ("colour = 1\n[[checks]]\nmetric = 'loss'\nmax = 1", "'colour'; it may have: checks, too_small"),
        ("too_small = 'shrug'\n[[checks]]\nmetric = 'loss'\nmax = 1", "warn, block"),
        ("[[checks]]\nmax = 1", "names no metric; choose one of: accuracy"),
        ("[[checks]]\nmetric = 'beauty'\nmin = 1", "accuracy, balanced_accuracy"),
        ("[[checks]]\nmetric = 'loss'\nmax = 1\nleast = 2", "'least'; it may have: metric"),
        ("[[checks]]\nmetric = 'loss'", "needs min or max"),
        ("[[checks]]\nmetric = 'loss'\nmin = 0\nmax = 1", "needs min or max"),
        ("[[checks]]\nmetric = 'loss'\nmax = 'one'", "must be a number"),
        ("[[checks]]\nmetric = 'loss'\nmax = true", "must be a number"),
        ("[[checks]]\nmetric = 3\nmax = 1", "must be a text"),
        ("[[checks]]\nmetric = 'loss'\ncompare = 'mother'\nmax = 1", "bound, champion"),
        ("[[checks]]\nmetric = 'loss'\nsplit = 'train'\nmax = 1", "held out, val, test"),
        ("[[checks]]\nmetric = 'loss'\nseverity = 'panic'\nmax = 1", "block, warn"),
        ("[[checks]]\nmetric = 'loss'\ncompare = 'champion'\nmargin = -1", "below 0"),
        ("[[checks]]\nmetric = 'loss'\ncompare = 'champion'\nmax = 1", "against the champion"),
        ("[[checks]]\nmetric = 'size_mb'\nslice = 'bee'\nmax = 1", "has no slices"),
        ("[[checks]]\nmetric = 'leaked_pictures'\ncompare = 'champion'", "give min or max"),
    ],
)
def test_what_a_policy_may_not_say(tmp_path, text, reason):
    with pytest.raises((ConfigError, UnknownChoice), match=reason):
        load_policy(written(tmp_path, text))


def test_a_policy_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_policy(tmp_path / "none.toml")


def test_every_metric_says_what_it_is():
    assert all(info.meaning for info in METRICS.values())
