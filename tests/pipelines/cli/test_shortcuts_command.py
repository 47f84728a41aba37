"""The command that searches for shortcuts: data set, source and batch, and what it refuses."""

from __future__ import annotations

import json
import shutil

import pytest


@pytest.fixture(scope="module")
def bundle_words(bundle_folder):
    return ("--bundle", str(bundle_folder), "--engine", "eager")


def test_a_source_is_searched_and_what_cannot_be_read_is_counted(butterflies, bundle_words, at_once, in_tmp):
    shutil.copytree(butterflies / "train", in_tmp / "pictures")
    (in_tmp / "pictures/broken.jpg").write_bytes(b"\xff\xd8\xff no")
    done = at_once("shortcuts", "pictures", *bundle_words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 pictures could not be used" in done.stdout
    assert "No shortcut was found in 30 pictures" in " ".join(done.stdout.split())
    figures = json.loads((in_tmp / "shortcuts/shortcuts.json").read_text())
    assert figures["pictures"] == 30
    assert figures["could_not_be_used"][0]["name"] == "broken.jpg"
    assert "No shortcut was found." in (in_tmp / "shortcuts/index.html").read_text()


def test_a_batch_is_searched_from_where_its_pictures_lie(butterflies, bundle_words, at_once, in_tmp):
    done = at_once("explain", str(butterflies / "train"), "--out", "batch", *bundle_words)
    assert done.returncode == 0, done.stdout + done.stderr
    done = at_once("shortcuts", "batch", *bundle_words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "in 30 pictures" in " ".join(done.stdout.split())
    note = json.loads((in_tmp / "batch/job.json").read_text())
    note["source"] = str(in_tmp / "gone")
    (in_tmp / "batch/job.json").write_text(json.dumps(note))
    done = at_once("shortcuts", "batch", *bundle_words)
    assert done.returncode == 1
    assert "There is no file or folder" in done.stdout + done.stderr
    note["model_digest"] = "0" * 64
    (in_tmp / "batch/job.json").write_text(json.dumps(note))
    done = at_once("shortcuts", "batch", *bundle_words)
    assert done.returncode == 1
    assert "was explained by the bundle 000000000000" in " ".join((done.stdout + done.stderr).split())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), "give either a batch or source, or --data"),
        (("x", "--data", "y"), "give either a batch or source, or --data"),
        (("missing",), "There is no file or folder missing"),
        (("--data", "missing"), "missing"),
        (("x", "--mitigate", "."), "exists already"),
    ],
)
def test_wrong_words_are_answered_in_a_sentence(words, expected, bundle_words, at_once, in_tmp):
    done = at_once("shortcuts", *words, *bundle_words)
    assert done.returncode in (1, 2)
    printed = " ".join((done.stdout + done.stderr).replace("│", " ").split())
    assert expected in printed
    assert "Traceback" not in printed
