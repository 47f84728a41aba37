"""Labels from folders, tables and sidecar files."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.data.dataset import scan_folder, with_task
from pipelines.errors import DataError


@pytest.fixture
def write(tmp_path, encode):
    """Makes pictures at the given paths of a new data folder."""

    def make(*names: str, table: str | None = None):
        for number, name in enumerate(names):
            path = tmp_path / "set" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(np.full((12, 12, 3), number * 7 % 256, np.uint8)))
        if table is not None:
            (tmp_path / "set").mkdir(exist_ok=True)
            (tmp_path / "set" / "labels.csv").write_text(table)
        return tmp_path / "set"

    return make


PICTURES = ["train/a.png", "train/b.png", "train/c.png", "val/d.png", "val/e.png"]


def test_a_table_with_any_number_of_labels(write):
    root = write(
        *PICTURES,
        table="file,labels\ntrain/a.png,cat;dog\ntrain/b.png,dog\ntrain/c.png,\n"
        "val/d.png,cat\nval/e.png,dog; cat\n",
    )
    found = scan_folder(root)
    assert (found.task, found.classes) == ("multilabel", ["cat", "dog"])
    assert [sample.labels for sample in found.train] == [(0, 1), (1,), ()]
    assert [sample.labels for sample in found.val] == [(0,), (0, 1)]
    assert scan_folder(root).digest == found.digest
    (root / "labels.csv").write_text((root / "labels.csv").read_text().replace("c.png,", "c.png,dog"))
    assert scan_folder(root).digest != found.digest


def test_a_table_with_one_column_a_label_and_a_split(write):
    root = write(
        "1.png", "2.png", "3.png", "4.png",
        table="file,split,spots,stripes\n1.png,train,1,0\n2.png,train,1,1\n3.png,val,0,1\n4.png,val,1,0\n",
    )  # fmt: skip
    found = scan_folder(root)
    assert (found.task, found.classes) == ("multilabel", ["spots", "stripes"])
    assert [sample.labels for sample in found.train] == [(0,), (0, 1)]
    assert [sample.labels for sample in found.val] == [(1,), (0,)]


def test_one_column_of_zeros_and_ones_is_a_binary_question(write):
    table = "file,rust\ntrain/a.png,1\ntrain/b.png,0\ntrain/c.png,0\nval/d.png,1\nval/e.png,0\n"
    found = scan_folder(write(*PICTURES, table=table))
    assert (found.task, found.classes) == ("binary", ["not rust", "rust"])
    assert [sample.label for sample in found.train] == [1, 0, 0]


def test_a_table_with_one_class_each(write):
    table = "file,label\ntrain/a.png,cat\ntrain/b.png,dog\ntrain/c.png,cat\nval/d.png,dog\nval/e.png,cat\n"
    found = scan_folder(write(*PICTURES, table=table))
    assert (found.task, [sample.label for sample in found.val]) == ("multiclass", [1, 0])


def test_sidecars_beside_the_pictures(write):
    root = write(*PICTURES, "val/f.png")
    said = {"a": "cat\ndog\n", "b": "dog", "c": "", "d": "cat", "e": "dog\n\n"}
    for stem, text in said.items():
        path = next(root.glob(f"*/{stem}.png"))
        path.with_suffix(".txt").write_text(text)
    found = scan_folder(root)
    assert (found.task, found.classes) == ("multilabel", ["cat", "dog"])
    assert [sample.labels for sample in found.train] == [(0, 1), (1,), ()]
    assert [(item.name, item.reason) for item in found.skipped] == [
        ("val/f.png", "It has no readable label file f.txt beside it.")
    ]


def test_what_a_table_and_its_folder_do_not_agree_on_is_named(write):
    table = (
        "file,labels\ntrain/a.png,cat\ntrain/b.png,dog\ntrain/gone.png,cat\nval/d.png,cat\nval/e.png,dog\n"
    )
    found = scan_folder(write(*PICTURES, "masks/train/a.png", table=table))
    assert {(item.name, item.reason) for item in found.skipped} == {
        ("train/gone.png", "labels.csv names it, but there is no such file."),
        ("train/c.png", "labels.csv has no row for it."),
    }


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("name,label\ntrain/a.png,x\n", "columns.*name.*needs file"),
        ("file\ntrain/a.png\n", "needs file, and label"),
        ("file,rust\ntrain/a.png,yes\n", "line 2: rust is 'yes'; it must be 0 or 1"),
        ("file,label\ntrain/a.png,\n", "line 2: the label is empty"),
        ("file,label\ntrain/a.png,x,y\n", "line 2: the row does not have 2 fields"),
        ("file,label\ntrain/a.png\n", "line 2: the row does not have 2 fields"),
        ("file,label\ntrain/a.png,x\ntrain/a.png,y\n", "line 3: the file 'train/a.png' is named twice"),
        ("file,label\n../secret.png,x\ntrain/a.png,y\n", "outside the data folder"),
        (
            "file,split,label\ntrain/a.png,dev,x\ntrain/b.png,val,y\n",
            "split 'dev' is none of train, val, test",
        ),
        ("file,label\ntrain/a.png,x\n", "at least two"),
        ("file,label\ntrain/a.png,x\nother.png,y\n", "at least two|no such file|no readable"),
        ("file,label,source\ntrain/a.png,x,web\n", "beside label or labels there may only be file and split"),
        ("file,cat,cat\ntrain/a.png,0,1\n", "columns"),
    ],
)
def test_a_broken_table_says_where(write, table, says):
    with pytest.raises(DataError, match=says):
        scan_folder(write(*PICTURES, table=table))


def test_a_table_that_is_no_text(write):
    root = write(*PICTURES, table="")
    (root / "labels.csv").write_bytes(b"file,label\n\xff\xfe,x\n")
    with pytest.raises(DataError, match="UTF-8"):
        scan_folder(root)


def test_the_task_can_be_set_where_the_labels_allow_it(butterflies, write):
    folders = scan_folder(butterflies)
    assert with_task(folders, "auto").task == "multiclass"
    assert with_task(folders, "multilabel").task == "multilabel"
    with pytest.raises(DataError, match="'binary', but the data has 5 classes"):
        with_task(folders, "binary")
    table = "file,labels\ntrain/a.png,cat\ntrain/b.png,dog\ntrain/c.png,\nval/d.png,cat\nval/e.png,dog\n"
    several = scan_folder(write(*PICTURES, table=table))
    with pytest.raises(DataError, match=r"'multiclass', but train/c\.png has 0 labels"):
        with_task(several, "multiclass")


def test_a_stray_picture_beside_class_folders_is_named_and_left_out(butterflies, tmp_path, encode):
    import shutil

    copy = shutil.copytree(butterflies, tmp_path / "copy")
    (copy / "train" / "cover.png").write_bytes(encode(np.zeros((9, 9, 3), np.uint8)))
    found = scan_folder(copy)
    assert (found.task, len(found.train)) == ("multiclass", 30)
    assert [(item.name, item.reason) for item in found.skipped] == [
        ("train/cover.png", "It lies in no class folder and has no label file.")
    ]


def test_pictures_may_be_links_to_where_a_data_store_keeps_them(write, tmp_path):
    table = "file,label\ntrain/a.png,cat\ntrain/b.png,dog\ntrain/c.png,cat\nval/d.png,dog\nval/e.png,cat\n"
    root = write(*PICTURES, table=table)
    (tmp_path / "store").mkdir()
    (root / "train/a.png").rename(tmp_path / "store" / "0f")
    (root / "train/a.png").symlink_to(tmp_path / "store" / "0f")
    assert len(scan_folder(root).train) == 3


def test_a_table_with_a_split_column_needs_no_folders(write):
    table = "file,split,label\ntrain/a.png,train,x\ntrain/b.png,train,y\ntrain/c.png,val,x\nother.png,val,y\n"
    found = scan_folder(write("train/a.png", "train/b.png", "train/c.png", "other.png", table=table))
    assert [sample.name for sample in found.val] == ["train/c.png", "other.png"]
