"""Mosaics in which the place of each class is known, and networks that can only look at one cell."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch

from models.attribution.forward import run_forward
from models.attribution.registry import attribute
from models.backends.eager import EagerBackend
from models.images.decode import read_image
from models.images.geometry import Geometry
from models.metrics.image_grids import build_grids
from models.networks.adoption import adopt
from tests.support.disconnected import cut, disconnect, disconnect_tokens, join
from tests.support.methods import parameters_of


@pytest.fixture(scope="module")
def images(imagenet, photos):
    """Twelve photographs of animals, as inputs."""
    paths = [sorted(folder.glob("*.jpg"))[0] for folder in sorted((photos / "caltech_animals/val").iterdir())]
    return [imagenet.geometry.prepare(read_image(path))[0] for path in paths[:12]]


def test_cells_are_cut_and_joined_without_a_change():
    x = torch.arange(2 * 3 * 8 * 12, dtype=torch.float32).reshape(2, 3, 8, 12)
    assert torch.equal(join(cut(x, 2), 2), x)
    assert torch.equal(cut(x, 2)[1], x[0, :, :4, 6:])


def test_a_grid_holds_pictures_of_different_classes_in_cells_that_are_known(imagenet, images):
    backend = EagerBackend(imagenet)
    grids = build_grids(backend, images, side=2, count=5)
    assert len(grids) == 5
    for grid in grids:
        assert grid.x.shape == (3, 448, 448)
        assert len(set(grid.classes)) == 4
        masks = np.stack([grid.mask(cell) for cell in range(4)])
        assert (masks.sum(axis=0) == 1).all()
        for cell, label in enumerate(grid.classes):
            rows, cols = np.where(masks[cell])
            alone = grid.x[:, rows.min() : rows.max() + 1, cols.min() : cols.max() + 1]
            assert any(torch.equal(alone, image) for image in images)
            assert int(run_forward(imagenet, alone[None]).logits.argmax()) == label
    again = build_grids(backend, images, side=2, count=5)
    assert all(torch.equal(one.x, other.x) for one, other in zip(grids, again, strict=True))


def test_a_network_of_one_size_sees_smaller_pictures(model_of, images):
    (grid,) = build_grids(EagerBackend(model_of("vit_b_16")), images, side=2, count=1) or [None]
    assert grid is None or grid.x.shape == (3, 224, 224)


def test_too_few_classes_make_no_grid(imagenet, images):
    assert build_grids(EagerBackend(imagenet), images[:1] * 4, side=2, count=3) == []


@pytest.mark.parametrize(
    ("kind", "name", "block"),
    [
        ("DiFull", "hires_cam", "stage5.2"),
        ("DiFull", "layer_cam", "stage5.2"),
        ("DiFull", "integrated_gradients", None),
        ("DiFull", "occlusion", None),
        ("DiFull", "guided_grad_cam", None),
        ("DiPart", "hires_cam", None),
        ("DiPart", "layer_cam", None),
    ],
)
def test_maps_lie_in_the_only_cell_that_the_score_can_come_from(imagenet, images, kind, name, block):
    for cell, shares in enumerate(shares_by_cell(imagenet, images, kind, name, block)):
        assert shares[cell] == pytest.approx(1.0, abs=1e-5), (cell, shares)


def test_what_a_transformer_passes_on_lies_in_the_only_cell_that_the_score_can_come_from():
    torch.manual_seed(0)
    network = timm.models.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2, class_token=False, global_pool="avg",
        num_classes=4,
    )  # fmt: skip
    for weights in network.parameters():
        torch.nn.init.normal_(weights, 0, 0.3)
    geometry = Geometry(32, 32, 32, (0.5,) * 3, (0.5,) * 3, "bilinear")
    model = adopt(network.requires_grad_(False), classes=list("abcd"), geometry=geometry)
    mosaic = disconnect_tokens(model, 2, {0: 2, 1: 0, 2: 3, 3: 1})
    x = torch.randn(1, 3, 64, 64)
    for label, cell in ((0, 2), (1, 0), (2, 3), (3, 1)):
        alone = model(cut(x, 2)[cell][None])[0, label]
        torch.testing.assert_close(mosaic(x)[0, label], alone)
    forward = run_forward(mosaic, x, block="patch_embed")
    (maps,) = attribute(forward, [[0, 1, 2, 3]], method="attention_relevance")
    for item, cell in zip(maps, (2, 0, 3, 1), strict=True):
        by_cell = _by_cell(item.values)
        assert item.values.shape == (8, 8)
        assert by_cell[cell] / by_cell.sum() == pytest.approx(1.0, abs=1e-6)


def test_grad_cam_puts_evidence_where_the_score_cannot_come_from(imagenet, images):
    """Its weights are means over all places, and so count activations that the score never sees."""
    shares = np.array(shares_by_cell(imagenet, images, "DiFull", "grad_cam", "stage5.2"))
    assert np.diagonal(shares).mean() < 0.9


def shares_by_cell(imagenet, images, kind, name, block):
    """For each class of a grid the share of its map, by size, in each cell."""
    grid = build_grids(EagerBackend(imagenet), images, side=2, count=1)[0]
    cells = {label: cell for cell, label in enumerate(grid.classes)}
    model = disconnect(imagenet, 2, cells, blocks=kind == "DiFull")
    small = {"integrated_gradients": {"steps": 8, "most_steps": 8, "cell": 8},
             "occlusion": {"window": 112, "stride": 112, "cell": 8}}.get(name, {})  # fmt: skip
    forward = run_forward(model, grid.x[None], block=block)
    (maps,) = attribute(forward, [list(grid.classes)], method=name, parameters=parameters_of(name, **small))
    by_cell = [_by_cell(item.values) for item in maps]
    assert min(values.sum() for values in by_cell) > 0
    return [values / values.sum() for values in by_cell]


def _by_cell(values):
    rows, cols = (side // 2 for side in values.shape)
    return np.array([
        np.abs(values[row * rows : (row + 1) * rows, col * cols : (col + 1) * cols]).sum()
        for row in range(2) for col in range(2)
    ])  # fmt: skip
