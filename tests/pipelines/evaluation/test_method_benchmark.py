"""The benchmark of methods: figures beside controls, what is chosen by them, what was measured is kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.backends.eager import EagerBackend
from models.images.decode import image_from_array, read_image
from models.metrics.control_maps import centre_spot
from models.networks.transfer_model import TransferModel
from pipelines.data.synthetic import SPECIES, SpecimenPlan
from pipelines.data.synthetic_parts import draw_parts
from pipelines.errors import DataError
from pipelines.evaluation.benchmark_plan import masked_image, plan_specimens, read_mask
from pipelines.evaluation.benchmark_tasks import (
    CEILING,
    DELETION,
    DeletionTask,
    GridTask,
    MaskTask,
    SpecimenTask,
)
from pipelines.evaluation.best_methods import FINEST, WHAT_IT_LOSES, WHICH_REGION, choose_best, summarize_rows
from pipelines.evaluation.method_benchmark import (
    Candidate,
    MethodBenchmark,
    list_candidates,
    make_contestants,
)
from pipelines.reports.method_benchmark import benchmark_tables

CANDIDATES = [
    Candidate("grad_cam", "stage6.0"), Candidate("hires_cam", "stage5.2"), Candidate("layer_cam", "stage6.0"),
    Candidate("occlusion", "stage6.0"),
]  # fmt: skip


@pytest.fixture(scope="module")
def images(imagenet, photos):
    paths = [sorted(folder.glob("*.jpg"))[0] for folder in sorted((photos / "caltech_animals/val").iterdir())]
    return [imagenet.geometry.prepare(read_image(path))[0] for path in paths[:12]]


def few_tasks(backend, images):
    """Two mosaics, and three images that are covered."""
    return [GridTask(backend, images, side=2, count=2, costly_share=0),
            DeletionTask(backend, images[:3], costly_share=0)]  # fmt: skip


def grid_row(candidate, sample, auroc, other=0.4):
    return {
        "task": "grid 2x2", "candidate": candidate, "sample": sample, "auroc": auroc, "other_class": other,
        "average_precision": 0.5, "pointing": 1.0, "energy": 0.4, "squared_energy": 0.5, "spot": 0.5,
    }  # fmt: skip


def deletion_row(candidate, sample, fit):
    figures = {"blur": fit, "mean": fit + 0.1, "area_between": 0.2}
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
    peers = [grid_row("a peer", sample, 0.99) for sample in range(20)]
    peers += [deletion_row("a peer", sample, 0.9) for sample in range(20)]
    beside = choose_best(summarize_rows([*rows, *peers]), CANDIDATES, cells)
    assert beside == list(best.values()), "what is no candidate here is not named"
    chance = [grid_row(coarse, sample, 0.5 + (-1) ** sample * 0.1, other=0.5) for sample in range(20)]
    assert choose_best(summarize_rows(chance), CANDIDATES, cells)[0].candidate is None


def test_the_highest_figure_is_marked_where_it_is_of_three_samples_or_more():
    rows = [grid_row("often", sample, 0.6) for sample in range(3)]
    rows += [grid_row("seldom", sample, 0.9) for sample in range(2)] + [grid_row("once", 0, 0.5)]
    (table,) = benchmark_tables(summarize_rows(rows))
    marked = {row.name for row in table.rows if row.cells[0].best}
    assert marked == {"often"}
    (table,) = benchmark_tables(summarize_rows(rows[3:]))
    assert not any(cell.best for row in table.rows for cell in row.cells)


def test_errors_are_those_of_the_samples_and_not_of_their_cells():
    values = ((0, 0.4), (1, 0.6))
    rows = [grid_row("grad_cam at top", sample, value) for sample, value in values for _ in range(9)]
    figure = summarize_rows(rows)[0].figures["auroc"]
    assert (figure.count, figure.mean) == (2, pytest.approx(0.5))
    assert figure.error == pytest.approx(0.1)


def test_a_benchmark_goes_on_where_it_was_stopped_and_refuses_another(imagenet, images, tmp_path):
    file, backend = tmp_path / "rows.jsonl", EagerBackend(imagenet)
    tasks = few_tasks(backend, images)
    makers = make_contestants(
        backend, [Candidate(name, imagenet.cam_block) for name in ("grad_cam", "layer_cam")]
    )

    def begin(name="one"):
        return MethodBenchmark(makers, tasks, file, about={"model": name})

    first = begin()
    first.run()
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:4]) + lines[4][:20])
    measured = []
    second = begin()
    second.run(lambda what, done, total: measured.append((done, total)))
    assert second.rows == first.rows
    assert measured[-1] == (5, 5)
    figures = {(item.task, item.candidate): item.figures for item in summarize_rows(second.rows)}
    assert {task for task, _ in figures} == {"grid 2x2", DELETION}
    assert figures["grid 2x2", f"grad_cam at {imagenet.cam_block}"]["auroc"].mean > 0.7
    assert figures[DELETION, CEILING]["single"].mean > 0.3
    with pytest.raises(DataError, match="another benchmark"):
        begin("two")


def test_a_benchmark_that_runs_out_of_time_has_asked_about_each_task(imagenet, images, tmp_path):
    backend, turns = EagerBackend(imagenet), iter([True] * 2)
    tasks = few_tasks(backend, images)
    makers = make_contestants(backend, [Candidate("grad_cam", imagenet.cam_block)])
    stopped = MethodBenchmark(makers, tasks, tmp_path / "rows.jsonl", about={})
    stopped.run(check=lambda: next(turns, False))
    assert [(row["task"], row["sample"]) for row in stopped.rows[-1:]] == [(DELETION, 0)]
    assert {row["task"] for row in stopped.rows} == {"grid 2x2", DELETION}


def constant(value):
    """A maker of maps that know nothing: the same for every input and class."""
    return lambda x, classes: [np.asarray(value, np.float32) for _ in classes]


def test_maps_are_held_against_masks_beside_another_class_and_another_picture(imagenet, photos):
    backend, masked = EagerBackend(imagenet), []
    for folder in sorted((photos / "caltech_animals/val").iterdir())[:4]:
        path = sorted(folder.glob("*.jpg"))[0]
        x, frame = imagenet.geometry.prepare(read_image(path))
        mask = (photos / "caltech_animals/masks/val" / folder.name / path.name).with_suffix(".png")
        masked.append(masked_image(backend, x, frame, read_mask(read_image(mask).pil)))
    task = MaskTask("masks", masked, costly_share=1)
    makers = {"grad_cam": make_contestants(backend, [Candidate("grad_cam", imagenet.cam_block)])[0].maps,
              "a spot": constant(centre_spot((7, 7)))}  # fmt: skip
    rows = [row for sample in range(len(task)) for row in task.measure(sample, makers)]
    spots = [row for row in rows if row["candidate"] == "a spot"]
    assert all(row["auroc"] == row["spot"] == row["other_class"] for row in spots)
    own = summarize_rows([row | {"task": "masks", "sample": n} for n, row in enumerate(rows)])[0].figures
    assert own["auroc"].mean > 0.7
    assert own["above_other_class"].mean == pytest.approx(own["auroc"].mean - own["other_class"].mean)
    assert task.case({"sample": 2}).label == masked[2].label


def test_a_mask_that_the_model_sees_nothing_or_only_it_of_is_no_sample(imagenet):
    frame = imagenet.geometry.frame(300, 200)
    x = torch.zeros(3, 224, 224)
    for mask in (np.zeros((200, 300), bool), np.ones((200, 300), bool)):
        assert masked_image(EagerBackend(imagenet), x, frame, mask, 0) is None


@pytest.fixture(scope="module")
def species():
    """A network of the specimens' classes; what it has learnt does not matter to what is measured."""
    torch.manual_seed(0)
    return TransferModel.create("efficientnet_lite0", [*SPECIES]).eval()


def test_a_map_that_is_what_the_parts_lose_is_perfect_on_specimens_and_its_opposite_is_not(species):
    backend = EagerBackend(species)
    drawn = draw_parts(SpecimenPlan(seed=3), "benchmark", "argus", 0, label=False)
    task = SpecimenTask(backend, [drawn], costly_share=1)
    x, frame = species.geometry.prepare(image_from_array(np.asarray(drawn.image)))
    without = [species.geometry.prepare(image_from_array(np.asarray(part.without)))[0]
               for part in drawn.parts.values()]  # fmt: skip
    with torch.no_grad():
        logits = species(torch.stack([x, *without]))[:, 0].numpy()
    lost = logits[0] - logits[1:]
    laid = np.zeros(frame.seen().shape, np.float32)
    for part, loss in zip(drawn.parts.values(), lost, strict=True):
        laid[part.mask] = loss / part.mask.sum()
    x0, y0, x1, y1 = (round(edge) for edge in frame.seen_box)
    fine = laid[y0:y1, x0:x1]
    (perfect, opposite) = task.measure(0, {"true": constant(fine), "opposite": constant(-fine)})
    assert perfect["parts"] == pytest.approx(1.0)
    assert opposite["parts"] == pytest.approx(-1.0)
    assert perfect["completeness"] == pytest.approx(1.0)
    assert opposite["completeness"] < 0.9


def test_between_two_marks_each_class_has_its_own(species):
    drawn = draw_parts(SpecimenPlan(seed=3), "benchmark", "cincta", 1, label=False)
    task = SpecimenTask(EagerBackend(species), [drawn], costly_share=1)
    frame = species.geometry.frame(*drawn.two_marks.size)
    x0, y0, x1, y1 = (round(edge) for edge in frame.seen_box)
    own, other = (mask[y0:y1, x0:x1].astype(np.float32) for mask in drawn.two_masks)

    def right(x, classes):
        return [own if species.classes[label] == "cincta" else other for label in classes]

    def wrong(x, classes):
        return [other if species.classes[label] == "cincta" else own for label in classes]

    found = task.measure(0, {"right": right, "wrong": wrong, "blind": constant(own + other)})
    assert [row["contrast"] for row in found] == pytest.approx([1.0, 0.0, 0.5], abs=0.02)


def test_specimens_are_for_models_that_know_them_and_labels_for_those_that_rely_on_them(imagenet, species):
    assert plan_specimens(EagerBackend(imagenet), 1) == []
    tasks = plan_specimens(EagerBackend(species), 1)
    assert [(task.name, len(task)) for task in tasks] == [("specimens", 5), ("planted label", 0)]


def test_candidates_are_every_method_that_the_network_has_a_block_for(imagenet, images):
    names = [str(item) for item in list_candidates(imagenet, images[0])]
    assert f"grad_cam at {imagenet.cam_block}" in names
    assert {"grad_cam at stage5.2", "occlusion", "rise", "integrated_gradients"} < set(names)
    assert len(set(names)) == len(names)
