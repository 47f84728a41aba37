"""Folders as people have them: odd class names, what systems leave behind, links, and odd tables."""

from __future__ import annotations

import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from pipelines.data.dataset import scan_folder
from pipelines.data.labels import list_folder
from pipelines.data.listing import list_images
from pipelines.errors import DataError
from tests.support.serving import PROJECT


@pytest.fixture
def cases():
    """The folder of small inputs that failed, beside that of the photographs."""
    photos = Path(os.environ.get("LUCIDA_DATA", PROJECT.parent / "shared" / "data"))
    folder = photos.parent / "cases"
    if not folder.is_dir():
        pytest.skip(f"needs the folder of small inputs that failed, which {folder} is not")
    return folder


@pytest.fixture
def pets(tmp_path, encode):
    """Six pictures of each of two classes on either side."""
    for split in ("train", "val"):
        for label, name in enumerate(("cats", "dogs")):
            (tmp_path / "pets" / split / name).mkdir(parents=True)
            for number in range(6):
                value = (label * 6 + number) * 10 + (split == "val")
                pixels = np.full((12, 12, 3), value, np.uint8)
                (tmp_path / "pets" / split / name / f"{number}.png").write_bytes(encode(pixels))
    return tmp_path / "pets"


@pytest.mark.parametrize(
    ("folder", "classes"),
    [
        ("D08_masks", ["gloves", "hats", "masks"]),
        ("D08b_underscore", ["_other", "ants", "bees"]),
        ("D07_train_class", ["bus", "car", "train"]),
    ],
)
def test_no_class_is_dropped_for_its_name(cases, folder, classes):
    assert scan_folder(cases / folder).classes == classes


def test_a_folder_of_masks_is_annotation_where_it_repeats_the_classes(pets, tmp_path):
    flat = tmp_path / "flat"
    shutil.copytree(pets / "train", flat)
    shutil.copytree(pets / "val", flat / "masks")
    assert list_folder(flat).classes == ["cats", "dogs"]


def test_a_split_beside_classes_is_asked_about_and_not_guessed(pets):
    shutil.rmtree(pets / "val")
    shutil.copytree(pets / "train/cats", pets / "birds")
    with pytest.raises(DataError, match="has train/ but no val/"):
        scan_folder(pets)


def test_what_lies_beside_the_splits_is_named(pets):
    shutil.copytree(pets / "train/cats", pets / "birds")
    reasons = {item.name: item.reason for item in scan_folder(pets).skipped}
    assert "beside train/" in reasons["birds/0.png"]
    assert len(reasons) == 6


@pytest.mark.parametrize("junk", [".ipynb_checkpoints", "@eaDir", "#recycle", "__MACOSX", ".Trashes"])
@pytest.mark.parametrize("place", ["", "train", "train/cats"])
def test_what_systems_leave_behind_is_left_out_and_counted(pets, junk, place):
    before = scan_folder(pets)
    shutil.copytree(pets / "val/dogs", pets / place / junk / "dogs")
    (pets / "train/cats/._0.png").write_bytes(b"resource fork")
    found = scan_folder(pets)
    assert (found.classes, found.digest) == (before.classes, before.digest)
    counts = {item.name: item.reason.split()[0] for item in found.skipped}
    assert counts == {f"{place}/{junk}".lstrip("/"): "6", "train/cats": "1"}
    assert set(list_images(pets)) == {before.root / sample.name for sample in before.train + before.val}


def test_links_to_files_and_folders_are_followed_and_loops_end(pets, tmp_path):
    before = scan_folder(pets).digest
    store = tmp_path / "store"
    shutil.move(pets / "train/cats", store)
    (pets / "train/cats").symlink_to(store)
    shutil.move(pets / "train/dogs/0.png", tmp_path / "dog.png")
    (pets / "train/dogs/0.png").symlink_to(tmp_path / "dog.png")
    (pets / "train/dogs/loop").symlink_to(pets / "train/dogs")
    assert scan_folder(pets).digest == before
    (pets / "train/dogs/nowhere.png").symlink_to(tmp_path / "nowhere")
    assert [item.name for item in scan_folder(pets).skipped] == ["train/dogs/nowhere.png"]


def test_a_link_to_another_folder_within_a_class_brings_its_pictures(pets, tmp_path):
    shutil.copytree(pets / "val/cats", tmp_path / "more")
    (pets / "train/cats/more").symlink_to(tmp_path / "more")
    assert len(scan_folder(pets).train) == 18


@pytest.mark.parametrize("folder", ["/", "/proc", "/proc/self", "/sys/class", "/dev"])
def test_folders_of_the_system_have_no_end_and_are_refused_at_once(folder):
    with pytest.raises(DataError, match="folder of the system; name the one with the pictures"):
        scan_folder(Path(folder))


def test_a_link_to_the_root_of_the_system_is_not_entered(pets):
    before = scan_folder(pets).digest
    (pets / "train/dogs/all").symlink_to("/")
    (pets / "train/dogs/processes").symlink_to("/proc")
    assert scan_folder(pets).digest == before


@pytest.mark.parametrize("folder", ["D10_suffixes", "D10b_alljfif"])
def test_every_picture_is_read_or_named_whatever_its_suffix(cases, folder):
    found = scan_folder(cases / folder)
    listed = {sample.name for sample in found.train + found.val + found.test}
    listed |= {item.name for item in found.skipped}
    assert listed == {
        path.relative_to(cases / folder).as_posix() for path in (cases / folder).rglob("*") if path.is_file()
    }


@pytest.mark.parametrize("folder", ["D12_backslash", "D13_ids", "D14b_table"])
def test_a_table_finds_the_files_that_it_means(cases, folder):
    found = scan_folder(cases / folder)
    assert found.skipped == []
    assert found.train


def test_one_name_in_two_forms_of_unicode_is_one_class(cases, pets):
    for split, form in (("train", "NFC"), ("val", "NFD")):
        (pets / split / "cats").rename(pets / split / unicodedata.normalize(form, "café"))
    assert scan_folder(pets).classes == ["café", "dogs"]
    assert scan_folder(cases / "D14_nfc_nfd").classes == ["café", "thé"]


def test_one_picture_under_two_classes_is_a_contradiction(cases, pets):
    shutil.copy(pets / "train/cats/0.png", pets / "train/dogs/same.png")
    found = scan_folder(pets)
    assert found.conflicting == [("train/cats/0.png", "train/dogs/same.png")]
    assert scan_folder(cases / "T03_two_classes").conflicting
