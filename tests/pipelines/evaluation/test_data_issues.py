"""Wrong labels and near duplicates: planted and found, absent and not claimed, kept and read again."""

from __future__ import annotations

import io
import random
import shutil

import numpy as np
import PIL.Image
import PIL.ImageEnhance
import PIL.ImageOps
import pytest

from models.networks.registry import get_backbone
from models.networks.transfer_model import TransferModel
from pipelines.data.dataset import Sample, scan_folder
from pipelines.data.synthetic import SpecimenPlan, write_specimens
from pipelines.evaluation.data_issues import DataIssues, embed_by, inspect_data
from pipelines.evaluation.label_errors import find_label_errors, too_few_to_judge
from pipelines.evaluation.near_duplicates import find_near_duplicates

CLASSES = 3


def clustered(labels, *, seed=0):
    """Samples with features gathered around their classes, and these."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(0, 1, (CLASSES, 20))
    vectors = np.stack(
        [centres[list(own)].sum(axis=0) + generator.normal(0, 0.1, 20) for own in labels]
    )  # fmt: skip
    samples = [Sample(None, f"{n}.jpg", tuple(own), f"{n:064d}", 10, 10) for n, own in enumerate(labels)]
    return samples, vectors


def relabelled(samples, changes):
    return [
        Sample(item.path, item.name, changes.get(n, item.labels), item.sha256, 10, 10)
        for n, item in enumerate(samples)
    ]


def test_flipped_labels_are_found_and_the_true_class_is_suggested():
    samples, vectors = clustered([(n % CLASSES,) for n in range(90)])
    flips = {5: (0,), 33: (2,), 61: (0,)}
    errors = find_label_errors(relabelled(samples, flips), vectors, classes=CLASSES, several=False)
    assert {int(error.sample.sha256) for error in errors} == set(flips)
    for error in errors:
        assert error.suggested == samples[int(error.sample.sha256)].labels
        assert error.labels == flips[int(error.sample.sha256)]
        assert error.score < 0.3


def test_right_labels_are_not_doubted_and_order_does_not_matter():
    samples, vectors = clustered([(n % CLASSES,) for n in range(90)])
    assert find_label_errors(samples, vectors, classes=CLASSES, several=False) == []


def test_of_several_labels_the_one_that_is_missing_or_too_many_is_named():
    labels = [tuple(sorted({n % CLASSES, (n // 7) % CLASSES})) for n in range(120)]
    samples, vectors = clustered(labels)
    alone = next(n for n, own in enumerate(labels) if own == (1,))
    pair = next(n for n, own in enumerate(labels) if own == (0, 2))
    changed = relabelled(samples, {alone: (0, 1), pair: (0,)})
    errors = {
        int(e.sample.sha256): e for e in find_label_errors(changed, vectors, classes=CLASSES, several=True)
    }
    assert errors[alone].suggested == (1,)
    assert errors[pair].suggested == (0, 2)
    assert len(errors) <= 4


def test_a_class_with_too_few_pictures_is_left_out_and_named():
    labels = [(n % 2,) for n in range(60)] + [(2,)] * 3
    samples, vectors = clustered(labels)
    assert too_few_to_judge(samples, classes=CLASSES) == [2]
    assert find_label_errors(samples, vectors, classes=CLASSES, several=False) == []


def copies(image):
    """The ways in which a picture comes a second time."""
    width, height = image.size
    low = io.BytesIO()
    image.save(low, "JPEG", quality=40)
    yield "compressed", PIL.Image.open(low).convert("RGB")
    yield "half", image.resize((width // 2, height // 2))
    yield "brighter", PIL.ImageEnhance.Brightness(image).enhance(1.2)
    yield "mirrored", PIL.ImageOps.mirror(image)


@pytest.fixture(scope="module")
def doubled(butterflies, tmp_path_factory):
    """The specimens with four pictures of train as copies in val."""
    root = tmp_path_factory.mktemp("doubled") / "set"
    shutil.copytree(butterflies, root)
    for number, path in enumerate(sorted((root / "train" / "argus").iterdir())[:4]):
        with PIL.Image.open(path) as image:
            name, copy = list(copies(image.convert("RGB")))[number]
        copy.save(root / "val" / "argus" / f"{name}.png")
    return root


@pytest.fixture(scope="module")
def pretrained(butterflies):
    return TransferModel.create("efficientnet_lite0", scan_folder(butterflies).classes)


def test_copies_are_found_and_other_pictures_are_not(doubled, pretrained):
    data = scan_folder(doubled)
    issues = inspect_data(data, embed_by(pretrained, data))
    found = {pair.held_out.name: pair.trained.name for pair in issues.near_duplicates}
    originals = sorted(f"train/argus/{path.name}" for path in (doubled / "train" / "argus").iterdir())[:4]
    names = ["compressed", "half", "brighter", "mirrored"]
    assert found == {
        f"val/argus/{name}.png": original for name, original in zip(names, originals, strict=True)
    }
    again = DataIssues.from_json(issues.to_json(data), data)
    assert again.to_json(data) == issues.to_json(data)
    assert DataIssues.from_json(issues.to_json(data).replace(data.digest, "0" * 64), data) is None
    assert DataIssues.from_json(None, data) is None


def test_different_photographs_are_no_duplicates(photos):
    data = scan_folder(photos / "hymenoptera")
    train, val = data.train[:120], data.val[:120]
    none = np.zeros((120, 4))
    assert find_near_duplicates(train, val, none, none) == []


@pytest.mark.soak
def test_of_five_percent_wrong_labels_four_of_five_are_found_and_four_of_five_found_are_wrong(tmp_path):
    root = write_specimens(SpecimenPlan(train=64, val=20, test=0, side=240), tmp_path / "set")
    shutil.rmtree(root / "masks")
    draw, flipped = random.Random(0), set()
    species = sorted(path.name for path in (root / "train").iterdir())
    for split in ("train", "val"):
        files = sorted((root / split).rglob("*.jpg"))
        for path in draw.sample(files, round(0.05 * len(files))):
            other = draw.choice([name for name in species if name != path.parent.name])
            path.rename(root / split / other / path.name)
            flipped.add(f"{split}/{other}/{path.name}")
    data = scan_folder(root)
    model = TransferModel.create(
        "efficientnet_lite0", data.classes, view=get_backbone("efficientnet_lite0").geometry().view
    )
    errors = inspect_data(data, embed_by(model, data)).label_errors
    right = sum(error.sample.name in flipped for error in errors)
    assert right / len(errors) >= 0.8
    assert right / len(flipped) >= 0.8
