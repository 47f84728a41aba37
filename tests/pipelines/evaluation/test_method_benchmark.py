"""The benchmark of methods: figures beside controls, what is chosen by them, what was measured is kept."""

from __future__ import annotations

import json

import numpy as np
import pytest

from models.backends.eager import EagerBackend
from models.images.decode import read_image
from pipelines.errors import DataError
from pipelines.evaluation.best_methods import FINEST, WHAT_IT_LOSES, WHICH_REGION, choose_best, summarize_rows
from pipelines.evaluation.method_benchmark import (
    CEILING,
    DELETION,
    Candidate,
    MethodBenchmark,
    list_candidates,
)

CANDIDATES = [
    Candidate("grad_cam", "stage6.0"), Candidate("hires_cam", "stage5.2"), Candidate("layer_cam", "stage6.0"),
    Candidate("occlusion", "stage6.0"),
]  # fmt: skip


@pytest.fixture(scope="module")
def images(imagenet, photos):
    paths = [sorted(folder.glob("*.jpg"))[0] for folder in sorted((photos / "caltech_animals/val").iterdir())]
    return [imagenet.geometry.prepare(read_image(path))[0] for path in paths[:12]]


def grid_row(candidate, sample, auroc, other=0.4):
    return {
        "task": "grid 2x2", "candidate": candidate, "sample": sample, "auroc": auroc, "other_class": other,
        "average_precision": 0.5, "pointing": 1.0, "energy": 0.4, "squared_energy": 0.5, "spot": 0.5,
    }  # fmt: skip


def deletion_row(candidate, sample, fit):
    figures = {"blur": fit, "mean": fit + 0.1, "area": 0.2}
    return {"task": DELETION, "candidate": candidate, "sample": sample, **figures}


def test_the_best_is_named_for_each_question_and_none_that_is_no_better_than_chance():
    rng = np.random.default_rng(0)
    coarse, fine, blind, occlusion = (str(item) for item in CANDIDATES)
    rows = []
    for sample in range(20):
        noise = rng.normal(0, 0.02, 5)
        rows += [grid_row(coarse, sample, 0.9 + noise[0]), grid_row(fine, sample, 0.7 + noise[1])]
        rows += [grid_row(blind, sample, 0.95 + noise[2], other=0.95)]
        rows += [deletion_row(coarse, sample, 0.2 + noise[3])]
        rows += [deletion_row(occlusion, sample, 0.6 + noise[4])]
    cells = {coarse: 7, fine: 14, blind: 7, occlusion: 28}
    best = {item.question: item for item in choose_best(summarize_rows(rows), CANDIDATES, cells)}
    assert best[WHICH_REGION].candidate == coarse, "the one that is blind to the class is not asked"
    assert best[WHAT_IT_LOSES].candidate == occlusion
    assert best[FINEST].candidate == fine
    assert best[WHICH_REGION].why.startswith("AUROC of its cell in grid 2x2: 0.")
    chance = [grid_row(coarse, sample, 0.5 + (-1) ** sample * 0.1, other=0.5) for sample in range(20)]
    assert choose_best(summarize_rows(chance), CANDIDATES, cells)[0].candidate is None


def test_errors_are_those_of_the_samples_and_not_of_their_cells():
    values = ((0, 0.4), (1, 0.6))
    rows = [grid_row("grad_cam at top", sample, value) for sample, value in values for _ in range(9)]
    figure = summarize_rows(rows)[0].figures["auroc"]
    assert (figure.count, figure.mean) == (2, pytest.approx(0.5))
    assert figure.error == pytest.approx(0.1)


def test_a_benchmark_goes_on_where_it_was_stopped_and_refuses_another(imagenet, images, tmp_path):
    file = tmp_path / "rows.jsonl"

    def begin(name="one"):
        about = {"model": name}
        found = MethodBenchmark(EagerBackend(imagenet), images[:9], file, about=about, grids=2)
        found.candidates = [item for item in found.candidates if item.method in ("grad_cam", "layer_cam")]
        return found

    first = begin()
    first.run()
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:5]) + lines[5][:20])
    measured = []
    second = begin()
    second.run(lambda what, done, total: measured.append((done, total)))
    assert sorted(map(json.dumps, second.rows)) == sorted(map(json.dumps, first.rows))
    assert measured[-1][0] == measured[-1][1]
    assert {row["task"] for row in second.rows} >= {"grid 2x2", DELETION}
    figures = {(item.task, item.candidate): item.figures for item in summarize_rows(second.rows)}
    assert figures["grid 2x2", f"grad_cam at {imagenet.cam_block}"]["auroc"].mean > 0.7
    assert figures[DELETION, CEILING]["single"].mean > 0.3
    with pytest.raises(DataError, match="another benchmark"):
        begin("two")


def test_candidates_are_every_method_that_the_network_has_a_block_for(imagenet, images):
    names = [str(item) for item in list_candidates(imagenet, images[0])]
    assert f"grad_cam at {imagenet.cam_block}" in names
    assert {"grad_cam at stage5.2", "occlusion", "rise", "integrated_gradients"} < set(names)
    assert len(set(names)) == len(names)
