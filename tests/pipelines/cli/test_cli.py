"""The command line: mistakes end with one sentence and the right exit code."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import pytest

from models.errors import LucidaError


def lucida(*words: str, cwd=None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-m", "pipelines.cli.app", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=cwd)


def test_a_mistake_ends_a_real_process_with_one_sentence(in_tmp):
    done = lucida("review", "0" * 32, "--data", ".", cwd=in_tmp)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, "MLflow's own narration is not shown"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("train", "--data", "nowhere"), "does not exist"),
        (("train", "--backbone", "vgg"), "efficientnet_lite0"),
        (("train", "--preset", "fast"), "quick, default, thorough"),
        (("train", "--set", "zoom=1"), "choose from: preset, backbone"),
        (("train", "--resume", "0123456789"), "there is none in runs"),
        (("compare", "0" * 32, "1" * 32, "--data", "."), "no run"),
        (("promote", "nothing"), "no version"),
        (("promote", "../x"), "must be letters"),
        (("review", "0" * 32, "--data", "."), "no run"),
        (("explain", ".", "--out", "o", "--bundle", "nowhere"), "bundle.json"),
        (("specimens", "s", "--shortcut", "monarch"), "argus"),
    ],
    ids=str,
)
def test_mistakes_are_one_sentence_and_exit_code_1(words, says, at_once):
    done = at_once(*words)
    assert done.returncode == 1, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ")


def test_brackets_in_a_file_name_are_printed_as_they_are(at_once, in_tmp, butterflies):
    copy = shutil.copytree(butterflies, in_tmp / "set")
    (copy / "train" / "argus" / "a[/b].jpg").parent.mkdir(parents=True, exist_ok=True)
    (copy / "train" / "argus" / "photo [red].jpg").write_bytes(b"x")
    done = at_once(
        "train", "--data", str(copy), "--backbone", "resnet18", "--weights", "none", "--name", "a b"
    )
    assert "photo [red].jpg" in done.stdout
    assert done.returncode == 1
    assert "must be letters" in done.stderr


def test_usage_errors_are_exit_code_2(at_once):
    assert at_once("explain", ".", "--out", "o").returncode == 2
    assert at_once("train", "--no-such-option").returncode == 2
    clash = at_once("train", "--resume", "0123456789", "--seed", "0")
    assert clash.returncode == 2
    assert "takes the run's own settings, not --seed" in " ".join(clash.stderr.split())


def test_rates_and_cache_say_where_to_look(at_once, in_tmp, butterflies, monkeypatch):
    monkeypatch.setenv("LUCIDA_CACHE", str(in_tmp / "cache"))
    done = at_once("rates", "--data", str(butterflies), "--preset", "quick")
    assert done.returncode == 0, done.stderr
    assert "look at rates/1.png" in done.stdout
    assert (in_tmp / "rates/1.png").stat().st_size > 5000
    kept = at_once("cache")
    assert re.search(r"3 arrays of features, 0\.00 GB", kept.stdout)
    assert "0 arrays" in at_once("cache", "--clear").stdout


def test_every_command_has_a_help_of_its_own():
    text = lucida("--help").stdout
    commands = (
        "specimens",
        "train",
        "promote",
        "package",
        "explain",
        "review",
        "demo",
        "rates",
        "compare",
        "cache",
    )
    for command in commands:
        assert re.search(rf"\b{command}\b", text)
        assert lucida(command, "--help").returncode == 0


def test_every_error_of_ours_is_drawn_in_the_tree_and_has_an_answer():
    from models import errors as model_errors
    from pipelines import errors as pipeline_errors
    from service.errors import to_http_error

    tree = f"{model_errors.__doc__}{pipeline_errors.__doc__}"

    def below(kind: type) -> list[type]:
        return [kind, *(each for child in kind.__subclasses__() for each in below(child))]

    for kind in below(LucidaError):
        assert kind.__name__ in tree
        error = kind("thing", "value", ["a"]) if kind is model_errors.UnknownChoice else kind("A sentence.")
        assert 400 <= to_http_error(error).status <= 504


FOLDERS_TO_WRITE = (
    ("specimens",), ("rates", "--data", ".", "--out"), ("demo", "--out"), ("explain", ".", "--out"),
    ("anatomy", "resnet18", "--out"), ("atlas", "stem", "--out"),
)  # fmt: skip
FILES_TO_WRITE = (
    ("review", "0" * 32, "--out"), ("compare", "0" * 32, "1" * 32, "--out"), ("inspect", "x.jpg", "--out"),
)  # fmt: skip


@pytest.mark.parametrize("words", FOLDERS_TO_WRITE, ids=lambda words: words[0])
@pytest.mark.parametrize("inner", ["", "/in/it"])
def test_a_file_where_a_folder_is_meant_is_told_before_any_work(words, inner, at_once, in_tmp):
    (in_tmp / "taken").write_text("mine")
    done = at_once(*words, f"taken{inner}")
    assert (done.returncode, done.stdout) == (1, "")
    assert "is a file; taken" in done.stderr
    assert "must be a folder" in done.stderr
    assert (in_tmp / "taken").read_text() == "mine"


@pytest.mark.parametrize("words", FILES_TO_WRITE, ids=lambda words: words[0])
def test_a_folder_where_a_file_is_meant_is_told_before_any_work(words, at_once, in_tmp):
    (in_tmp / "there").mkdir()
    done = at_once(*words, "there")
    assert (done.returncode, done.stdout) == (1, "")
    assert "there is a folder; name the file to write" in done.stderr
