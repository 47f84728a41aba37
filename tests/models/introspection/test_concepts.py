"""Predictions by concepts: shares add up, absences are measured, what is kept is checked."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import nnls

from models.attribution.targets import make_target
from models.backends.eager import EagerBackend
from models.errors import BundleError, UnknownChoice
from models.images.decode import read_image
from models.introspection.concept_set import (
    CONCEPTS_FILE,
    CONCEPTS_TENSORS,
    ConceptSet,
    keep_largest,
    read_concepts,
    solve_codes,
    write_concepts,
)
from models.introspection.concepts import explain_by_concepts
from models.networks.transfer_model import TransferModel

COUNT = 4
IMAGE = "data:image/jpeg;base64,AA=="
ENTRY = {
    "present": 3, "share": 1.5, "loss": 0.2, "flips": 1, "by_class": {"bee": 1.5},
    "patches": [{"picture": "a.jpg", "label": "bee", "strength": 3.0, "crop": IMAGE, "where": IMAGE}],
}  # fmt: skip
SUMMARY = {"fitted": 9, "measured": 6, "residual": 0.4, "described": 1.0, "parts": [], "facts": {}}


def some_concepts(model, x, block, *, names=("", "wing tip", "", "")) -> ConceptSet:
    """Concepts along random directions, of the size of the features."""
    with torch.no_grad():
        features = model.as_map(block, model.until(block, x))
    generator = torch.Generator().manual_seed(0)
    channels = features.shape[1]
    directions = torch.randn(COUNT, channels, generator=generator, dtype=torch.float64)
    directions *= features.std().double()
    return ConceptSet(
        block=block, method="factorization", digest="d" * 64,
        mean=features.double().mean((0, 2, 3)), directions=directions, encoder=directions,
        gram=directions @ directions.T, bias=None, active=COUNT, levels=torch.full((COUNT,), 0.1).double(),
        names=names, entries=(ENTRY,) * COUNT,
        summary=SUMMARY,
    )  # fmt: skip


@pytest.fixture(scope="module")
def bee(photos, imagenet):
    path = sorted((photos / "hymenoptera/val/bees").glob("*.jpg"))[0]
    return imagenet.geometry.prepare(read_image(path))[0]


def test_codes_are_those_of_non_negative_least_squares():
    generator = torch.Generator().manual_seed(1)
    directions = torch.randn(6, 20, generator=generator, dtype=torch.float64)
    cells = torch.randn(50, 20, generator=generator, dtype=torch.float64)
    codes = solve_codes(cells @ directions.T, directions @ directions.T)
    theirs = np.stack([nnls(directions.T.numpy(), cell)[0] for cell in cells.numpy()])
    np.testing.assert_allclose(codes.numpy(), theirs, atol=1e-6)


def test_only_the_largest_codes_of_a_cell_are_kept():
    codes = torch.tensor([[0.0, 3.0, 1.0, 2.0], [5.0, 0.0, 0.0, 4.0]])
    assert keep_largest(codes, 2).tolist() == [[0.0, 3.0, 0.0, 2.0], [5.0, 0.0, 0.0, 4.0]]


def test_above_the_last_block_a_share_is_the_linear_layer_on_the_concepts_mean_code(imagenet, bee):
    concepts = some_concepts(imagenet, bee[None], "top")
    target = make_target(imagenet.classes, imagenet.classes.index("bee"))
    result = explain_by_concepts(EagerBackend(imagenet), bee, target, concepts)
    weights, bias = imagenet.classifier[1].weight[target.index], imagenet.classifier[1].bias[target.index]
    with torch.no_grad():
        features = imagenet.as_map("top", imagenet.until("top", bee[None]))
    codes = concepts.encode(features)[0]
    assert result.base == pytest.approx(float(weights.double() @ concepts.mean + bias), abs=1e-3)
    for share in result.shares:
        by_hand = codes[share.number].mean() * (concepts.directions[share.number] @ weights.double())
        assert share.share == pytest.approx(float(by_hand), abs=1e-3)
    assert [abs(share.share) for share in result.shares] == sorted(
        (abs(share.share) for share in result.shares), reverse=True
    )


@pytest.mark.parametrize("block", ["stage5.2", "top"])
@pytest.mark.parametrize("against", [None, "ant"])
def test_base_shares_and_rest_are_the_logit_and_an_absence_is_what_the_network_then_says(
    imagenet, bee, block, against
):
    classes = imagenet.classes
    concepts = some_concepts(imagenet, bee[None], block)
    target = make_target(classes, classes.index("bee"), None if against is None else classes.index(against))
    result = explain_by_concepts(EagerBackend(imagenet), bee, target, concepts)
    total = result.base + sum(share.share for share in result.shares) + result.rest
    assert total == pytest.approx(result.logit, abs=0.05 * abs(result.logit - result.base) + 1e-3)
    assert total + result.residual == pytest.approx(result.logit, abs=1e-3)
    with torch.no_grad():
        features = imagenet.as_map(block, imagenet.until(block, bee[None]))
        assert result.logit == pytest.approx(float(target.of(imagenet.after(block, features))), abs=1e-4)
        flat = concepts.mean.float()[None, :, None, None].expand_as(features)
        assert result.base == pytest.approx(float(target.of(imagenet.after(block, flat))), abs=1e-2)
        share = result.shares[0]
        codes = concepts.encode(features)[0, share.number].float()
        left = features - codes * concepts.directions[share.number].float()[None, :, None, None]
        scores = imagenet.scoring.scores(imagenet.after(block, left))[0]
    np.testing.assert_allclose(share.codes, codes.numpy(), rtol=1e-5)
    assert share.score_without == pytest.approx(float(scores[target.index]), abs=1e-5)
    assert share.label_without == classes[int(scores.argmax())]


def test_a_share_is_the_gradients_mean_along_the_line_times_the_concepts_part(imagenet, bee):
    """By a hundred even steps, at a block with half of the network above it."""
    concepts = some_concepts(imagenet, bee[None], "stage5.2")
    target = make_target(imagenet.classes, imagenet.classes.index("bee"))
    result = explain_by_concepts(EagerBackend(imagenet), bee, target, concepts)
    with torch.no_grad():
        features = imagenet.as_map("stage5.2", imagenet.until("stage5.2", bee[None]))
    mean = concepts.mean.float()[None, :, None, None]
    gradient = torch.zeros_like(features)
    for step in range(100):
        point = (mean + (step + 0.5) / 100 * (features - mean)).requires_grad_()
        gradient += torch.autograd.grad(imagenet.after("stage5.2", point)[0, target.index], point)[0] / 100
    codes = concepts.encode(features)[0].float()
    rise = abs(result.logit - result.base)
    for share in result.shares:
        part = codes[share.number] * concepts.directions[share.number].float()[None, :, None, None]
        assert share.share == pytest.approx(float((gradient * part).sum()), abs=0.05 * rise)


@pytest.mark.parametrize(("name", "block"), [("vit_b_16", "layers.8"), ("swin_t", "stage3.5")])
def test_a_transformers_tokens_are_shared_out_too(name, block):
    torch.manual_seed(0)
    model = TransferModel.create(name, ["ant", "bee"], pretraining="none").eval()
    x = torch.randn(3, 224, 224)
    concepts = some_concepts(model, x[None], block)
    result = explain_by_concepts(EagerBackend(model), x, make_target(model.classes, 0), concepts)
    total = result.base + sum(share.share for share in result.shares) + result.rest
    assert total == pytest.approx(result.logit, abs=0.05 * abs(result.logit - result.base) + 1e-3)
    with torch.no_grad():
        assert result.logit == pytest.approx(float(model(x[None])[0, 0]), abs=1e-4)
    assert result.shares[0].codes.shape == (14, 14)


def test_concepts_are_read_as_they_were_written_with_their_names(imagenet, bee, tmp_path):
    concepts = some_concepts(imagenet, bee[None], "top")
    write_concepts(concepts.renamed(0, "antenna"), tmp_path)
    read = read_concepts(tmp_path, "d" * 64)
    assert read is not None
    assert read.names == ("antenna", "wing tip", "", "")
    assert read.title(2) == "concept 2"
    for name in ("mean", "directions", "encoder", "gram", "levels"):
        assert torch.equal(getattr(read, name), getattr(concepts, name))
    assert read_concepts(tmp_path / "nowhere") is None


@pytest.mark.parametrize(("number", "name"), [(4, "wing"), (-1, "wing"), (0, "x" * 81), (0, "two\nlines")])
def test_a_name_that_cannot_be_given_is_refused(imagenet, bee, number, name):
    with pytest.raises(UnknownChoice):
        some_concepts(imagenet, bee[None], "top").renamed(number, name)


def test_damaged_concepts_and_those_of_another_bundle_are_refused(imagenet, bee, tmp_path):
    concepts = some_concepts(imagenet, bee[None], "top")
    write_concepts(concepts, tmp_path)
    with pytest.raises(BundleError, match="of the bundle dddddddddddd, not of eeeeeeeeeeee"):
        read_concepts(tmp_path, "e" * 64)
    about = json.loads((tmp_path / CONCEPTS_FILE).read_text())
    outside = {**ENTRY["patches"][0], "crop": "https://example.org/a.jpg"}
    for change in (
        {"names": ["a"]}, {"method": "magic"}, {"names": [3, "", "", ""]}, {"concepts": [{}] * COUNT},
        {"concepts": [ENTRY] * 3}, {"concepts": [ENTRY | {"share": "much"}] * COUNT},
        {"concepts": [ENTRY | {"patches": [outside]}] * COUNT}, {"summary": {}}, {"summary": None},
        {"concepts": [ENTRY | {"by_class": [1]}] * COUNT},
        {"summary": SUMMARY | {"parts": [{"number": "one"}]}}, {"block": None}, {"active": "all"},
        {"active": -1}, {"tensors": "0" * 64}, {"summary": SUMMARY | {"measured": 3.5}},
        {"concepts": [ENTRY | {"flips": 1.5}] * COUNT}, {"summary": SUMMARY | {"facts": [["a", "b"]]}},
    ):  # fmt: skip
        (tmp_path / CONCEPTS_FILE).write_text(json.dumps(about | change))
        with pytest.raises(BundleError, match="cannot be read"):
            read_concepts(tmp_path)
    for tensors in (
        {"mean": concepts.mean * float("nan")}, {"gram": -concepts.gram}, {"levels": torch.ones(9).double()},
        {"levels": torch.zeros(COUNT).double()}
    ):  # fmt: skip
        write_concepts(replace(concepts, **tensors), tmp_path)
        with pytest.raises(BundleError, match="cannot be read"):
            read_concepts(tmp_path)
    write_concepts(concepts, tmp_path)
    (tmp_path / CONCEPTS_TENSORS).write_bytes(b"cut off")
    with pytest.raises(BundleError, match="cannot be read"):
        read_concepts(tmp_path)
    with pytest.raises(BundleError, match="1280 channels; the block has 3"):
        concepts.encode(torch.zeros(1, 3, 7, 7))
