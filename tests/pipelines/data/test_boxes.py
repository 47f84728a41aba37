"""Boxes beside the images: read with care, and used for localisation as masks are."""

from __future__ import annotations

import shutil

import numpy as np
import PIL.Image
import pytest

from pipelines.data.boxes import read_boxes
from pipelines.data.dataset import scan_folder
from pipelines.errors import DataError
from pipelines.evaluation.explanations import measure_localization

HEAD = "file,xmin,ymin,xmax,ymax\n"


def test_boxes_are_found_by_path_or_by_split_class_and_file(tmp_path):
    names = ["val/café/1.jpg", "val/café/2.jpg"]
    rows = "val\\café\\1.jpg,1,2,30,40\nval/café/1.jpg,5,5,9,9\nval/café/9.jpg,1,1,2,2\n"
    (tmp_path / "boxes.csv").write_text(HEAD + rows)
    boxes, skipped = read_boxes(tmp_path, names)
    assert boxes == {"val/café/1.jpg": ((1, 2, 30, 40), (5, 5, 9, 9))}
    assert [item.name for item in skipped] == ["boxes.csv: val/café/9.jpg"]
    (tmp_path / "boxes.csv").write_text("split,class," + HEAD + "val,café,2.jpg,0,0,3,4\n")
    assert read_boxes(tmp_path, names)[0] == {"val/café/2.jpg": ((0, 0, 3, 4),)}
    (tmp_path / "boxes.csv").unlink()
    assert read_boxes(tmp_path, names) == ({}, [])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("file,x0,y0,x1,y1\n", "lacks the columns xmin, ymin, xmax, ymax"),
        (HEAD + "1.jpg,a,2,3,4\n", "line 2: xmin, ymin, xmax, ymax must be numbers"),
        (HEAD + "1.jpg,,,,\n", "line 2"),
        (HEAD + "1.jpg,5,2,3,4\n", "xmin < xmax"),
        (HEAD + "1.jpg,nan,2,3,4\n", "line 2"),
    ],
)
def test_a_table_of_boxes_that_cannot_be_meant_names_its_line(tmp_path, text, says):
    (tmp_path / "boxes.csv").write_text(text)
    with pytest.raises(DataError, match=says):
        read_boxes(tmp_path, ["1.jpg"])


def test_boxes_locate_as_masks_of_the_same_rectangles_do(butterflies, imagenet, tmp_path):
    masked, boxed = (tmp_path / name for name in ("masked", "boxed"))
    for root in (masked, boxed):
        shutil.copytree(butterflies, root)
        shutil.rmtree(root / "masks")
    lines = [HEAD]
    for path in sorted((boxed / "val").rglob("*.jpg")):
        width, height = PIL.Image.open(path).size
        inner = path.relative_to(boxed)
        lines.append(f"{inner.as_posix()},10,20,{width // 2},{height // 2}\n")
        mask = np.zeros((height, width), np.uint8)
        mask[20 : height // 2, 10 : width // 2] = 255
        target = (masked / "masks" / inner).with_suffix(".png")
        target.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(mask).save(target)
    (boxed / "boxes.csv").write_text("".join(lines))
    by_masks, by_boxes = (
        measure_localization(imagenet, scan_folder(root), "val") for root in (masked, boxed)
    )
    assert by_boxes == by_masks
    assert by_boxes[0].pictures == len(lines) - 1
