"""Data sets are found, split and digested the same way each time."""

from __future__ import annotations

import hashlib
import shutil

import numpy as np
import PIL.Image
import pytest

from pipelines.data.dataset import scan_folder
from pipelines.errors import DataError


def fill(folder, count, seed, encode, start=0):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(start, start + count):
        rng = np.random.default_rng([seed, number])
        (folder / f"p{number}.png").write_bytes(encode(rng.integers(0, 255, (12, 12, 3), dtype=np.uint8)))


@pytest.fixture
def flat(tmp_path, encode):
    for seed, name in enumerate(("cats", "dogs")):
        fill(tmp_path / "pets" / name, 60, seed, encode)
    return tmp_path / "pets"


def test_divided_folders_keep_their_sides(butterflies):
    found = scan_folder(butterflies)
    assert found.classes == ["apicata", "argus", "caudata", "cincta", "punctata"], "masks/ is no class"
    assert (len(found.train), len(found.val), len(found.test)) == (30, 20, 10)
    assert {sample.name.split("/")[0] for sample in found.val} == {"val"}
    assert all((found.root / "masks" / sample.name).with_suffix(".png").is_file() for sample in found.val)


def test_one_folder_is_split_by_content(flat, encode):
    found = scan_folder(flat, val_share=0.25)
    side = {s.sha256: "train" for s in found.train} | {s.sha256: "val" for s in found.val}
    assert 0.12 < len(found.val) / 120 < 0.4
    for digest, where in side.items():
        assert where == ("val" if int(digest[:8], 16) / 2**32 < 0.25 else "train")
    shutil.move(flat / "cats" / "p3.png", flat / "cats" / "renamed.png")
    fill(flat / "dogs", 30, 9, encode, start=500)
    later = scan_folder(flat, val_share=0.25)
    moved = {s.sha256: "train" for s in later.train} | {s.sha256: "val" for s in later.val}
    assert {digest: moved[digest] for digest in side} == side, "the same picture stays on its side"


def test_broken_files_are_named_and_skipped(flat):
    (flat / "cats" / "broken.jpg").write_bytes(b"\xff\xd8\xff cut off")
    (flat / "cats" / "empty.png").write_bytes(b"")
    (flat / "dogs" / "notes.txt").write_text("no picture by its name")
    found = scan_folder(flat)
    assert {item.name for item in found.skipped} == {"cats/broken.jpg", "cats/empty.png"}
    assert all(item.reason.endswith(".") for item in found.skipped)
    assert len(found.train) + len(found.val) == 120


def test_a_picture_on_both_sides_is_found_by_content(butterflies, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(butterflies, copy)
    shutil.copy(copy / "train/argus/argus_000.jpg", copy / "val/argus/other_name.jpg")
    assert scan_folder(copy).shared == [("train/argus/argus_000.jpg", "val/argus/other_name.jpg")]


def test_the_digest_names_content_and_labels_not_places(flat, tmp_path):
    first = scan_folder(flat).digest
    shutil.move(flat, tmp_path / "elsewhere")
    assert scan_folder(tmp_path / "elsewhere").digest == first
    (tmp_path / "elsewhere/cats").rename(tmp_path / "elsewhere/tigers")
    assert scan_folder(tmp_path / "elsewhere").digest != first


def test_what_cannot_be_trained_is_a_clear_error(tmp_path, encode):
    with pytest.raises(DataError, match="does not exist"):
        scan_folder(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="at least two classes"):
        scan_folder(tmp_path / "empty")
    fill(tmp_path / "one" / "cats", 5, 0, encode)
    with pytest.raises(DataError, match="only 'cats'"):
        scan_folder(tmp_path / "one")
    fill(tmp_path / "two" / "train" / "cats", 5, 0, encode)
    with pytest.raises(DataError, match="no val/"):
        scan_folder(tmp_path / "two")
    fill(tmp_path / "two" / "train" / "dogs", 5, 1, encode)
    fill(tmp_path / "two" / "val" / "cats", 5, 2, encode)
    fill(tmp_path / "two" / "val" / "wolves", 5, 3, encode)
    with pytest.raises(DataError, match=r"missing \['dogs'\], unknown \['wolves'\]"):
        scan_folder(tmp_path / "two")
    for split in ("train", "val"):
        fill(tmp_path / "three" / split / "cats", 3, 4, encode)
        (tmp_path / "three" / split / "dogs").mkdir(parents=True)
    (tmp_path / "three/train/dogs/bad.jpg").write_bytes(b"x")
    with pytest.raises(DataError, match=r"dogs.*were left out"):
        scan_folder(tmp_path / "three")


def test_scanning_decodes_what_service_decodes(flat):
    sample = scan_folder(flat).train[0]
    assert sample.sha256 == hashlib.sha256(sample.path.read_bytes()).hexdigest()
    assert PIL.Image.open(sample.path).size == (12, 12)
