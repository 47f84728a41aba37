"""Which maps to believe: this project's methods beside pytorch-grad-cam's and Captum's, on the same inputs.

python benchmarks/trust.py PICTURES --out FOLDER [--images 40] [--grids 24] [--specimens 4]

PICTURES is a folder with val/ and masks/val/, such as caltech_animals. Three models are asked: a network with
its ImageNet weights about photographs; one that is trained on drawn specimens here, about their parts; and
one that is trained where most specimens of a species have a collector's label, about that label. What is
measured is kept, so a run that was stopped goes on. --write FILE makes docs/reference/trust-benchmark.md.
"""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from captum.attr import IntegratedGradients, LayerGradCam, Occlusion
from pytorch_grad_cam import AblationCAM, EigenCAM, FinerCAM, GradCAM, ScoreCAM, XGradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

from models.backends.base import Backend
from models.backends.eager import EagerBackend
from models.host_memory import keep_freed_memory
from models.images.decode import read_image
from models.networks.batchnorm_folding import inference_copy
from models.networks.transfer_model import TransferModel
from pipelines.cli.terminal import progress_reporter
from pipelines.config.loader import load_config
from pipelines.data.dataset import scan_folder
from pipelines.data.synthetic import SPECIES, SpecimenPlan, write_specimens
from pipelines.evaluation.benchmark_plan import masked_image, plan_specimens, plan_tasks, read_mask
from pipelines.evaluation.benchmark_tasks import BenchmarkTask
from pipelines.evaluation.best_methods import MethodFigures, choose_best, summarize_rows
from pipelines.evaluation.method_benchmark import (
    Contestant,
    MethodBenchmark,
    cells_by_candidate,
    list_candidates,
    make_contestants,
)
from pipelines.reports.benchmark_cases import draw_cases
from pipelines.reports.method_benchmark import benchmark_tables, render_benchmark
from tests.support.training import fine_tune

_BACKBONE = "efficientnet_lite0"
_PAGE = "docs/reference/trust-benchmark.md"
_CAMS = (GradCAM, XGradCAM, EigenCAM, FinerCAM)
_COSTLY_CAMS = (ScoreCAM, AblationCAM)
_LARGEST = 256
"""Side of the largest input for those."""
_LABELLED = SpecimenPlan(train=24, val=12, test=8, shortcut_species="cincta", shortcut_share=0.95)


def main() -> None:
    """Measure three models, and write a page for each and a table of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--grids", type=int, default=24)
    parser.add_argument("--specimens", type=int, default=4)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    keep_freed_memory()
    # Every maker of maps is asked about the same folded copy, peers too.
    photographs = EagerBackend(inference_copy(TransferModel.imagenet(_BACKBONE)))
    sections = [("Photographs", photographs, _on_photographs(photographs, options))]
    for title, plan in (
        ("Drawn specimens", replace(_LABELLED, shortcut_species="")),
        ("A planted label", _LABELLED),
    ):
        backend = EagerBackend(_trained(plan, options.out / title.split()[-1]))
        tasks = plan_specimens(backend, options.specimens)
        sections.append((title, backend, [task for task in tasks if len(task)]))
    text = [_head(options)]
    for title, backend, tasks in sections:
        text.append(_measure(title, backend, tasks, options.out))
    if options.write is not None:
        options.write.write_text("\n".join(text))
    print("\n".join(text))


def _on_photographs(backend: Backend, options: argparse.Namespace) -> list[BenchmarkTask]:
    """Return the tasks on photographs with masks, evenly taken."""
    paths = sorted((options.pictures / "val").rglob("*.jpg"))
    images, masked = [], []
    for path in paths[:: max(1, len(paths) // options.images)][: options.images]:
        x, frame = backend.model.geometry.prepare(read_image(path))
        images.append(x)
        mask = options.pictures / "masks" / path.relative_to(options.pictures).with_suffix(".png")
        if mask.is_file():
            masked.append(masked_image(backend, x, frame, read_mask(read_image(mask).pil)))
    seen = [item for item in masked if item is not None]
    return plan_tasks(backend, images, grids=options.grids, masked=seen)


def _trained(plan: SpecimenPlan, folder: Path) -> TransferModel:
    """Return a model trained on specimens, by the preset "quick"."""
    data = scan_folder(write_specimens(plan, folder))
    model = TransferModel.create(_BACKBONE, data.classes)
    fine_tune(model, data, load_config(None, preset="quick"))
    return inference_copy(model)


def _measure(title: str, backend: Backend, tasks: Sequence[BenchmarkTask], out: Path) -> str:
    """Ask all makers of maps, write the page, and return the figures as Markdown."""
    model, x = backend.model, torch.zeros(3, 224, 224)
    candidates = list_candidates(model, x)
    own = make_contestants(backend, candidates)
    folder = out / title.lower().replace(" ", "-")
    about = {"backbone": _BACKBONE, "title": title, **_versions()}
    peers = _peers(model, forwards_by_channel=len(model.classes) > len(SPECIES))
    benchmark = MethodBenchmark([*own, *peers], tasks, folder / "rows.jsonl", about=about)
    with progress_reporter() as reporter:
        benchmark.run(reporter.step)
    figures = summarize_rows(benchmark.rows)
    best = choose_best(figures, candidates, cells_by_candidate(candidates, model, x))
    cases = draw_cases(benchmark, best, model)
    (folder / "index.html").write_text(render_benchmark(figures, best, cases, title=title, about=_BACKBONE))
    return _markdown(title, figures)


def _peers(model: TransferModel, *, forwards_by_channel: bool) -> list[Contestant]:
    """Return other libraries' methods at the last block, on inputs like ours; FinerCAM compares with the
    classes that the model finds most alike, by its own rule. Those that take a forward for each of 1,280
    channels are left out where that would take hours.
    """
    network, block = model, model.block(model.cam_block)
    cams = [
        Contestant(f"pytorch-grad-cam {kind.__name__}", _cam(kind, network, block), kind in _COSTLY_CAMS)
        for kind in (*_CAMS, *(_COSTLY_CAMS if forwards_by_channel else ()))
    ]
    return [
        *cams,
        Contestant("Captum LayerGradCam", _layer_grad_cam(network, block)),
        Contestant("Captum IntegratedGradients", _integrated(network), costly=True),
        Contestant("Captum Occlusion", _occlusion(network), costly=True),
    ]


Maps = Callable[[Tensor, Sequence[int]], list[np.ndarray]]


def _cam(kind: type, network: nn.Module, block: nn.Module) -> Maps:
    def maps(x: Tensor, classes: Sequence[int]) -> list[np.ndarray]:
        # A forward for each channel of each class: minutes for a mosaic.
        if kind in _COSTLY_CAMS and max(x.shape[1:]) > _LARGEST:
            return []
        found = []
        for label in classes:
            with kind(model=network, target_layers=[block]) as cam:
                targets = None if kind is FinerCAM else [ClassifierOutputTarget(label)]
                extra = {"target_idx": label} if kind is FinerCAM else {}
                found.append(cam(input_tensor=x[None].clone().requires_grad_(), targets=targets, **extra)[0])
        return found

    return maps


def _layer_grad_cam(network: nn.Module, block: nn.Module) -> Maps:
    def maps(x: Tensor, classes: Sequence[int]) -> list[np.ndarray]:
        cam = LayerGradCam(network, block)
        return [
            cam.attribute(x[None].clone().requires_grad_(), target=label)[0, 0].detach().numpy()
            for label in classes
        ]

    return maps


def _integrated(network: nn.Module) -> Maps:
    def maps(x: Tensor, classes: Sequence[int]) -> list[np.ndarray]:
        method = IntegratedGradients(network)
        return [
            method.attribute(x[None], target=label, n_steps=50, internal_batch_size=8)[0]
            .sum(0)
            .detach()
            .numpy()
            for label in classes
        ]

    return maps


def _occlusion(network: nn.Module) -> Maps:
    def maps(x: Tensor, classes: Sequence[int]) -> list[np.ndarray]:
        method = Occlusion(network)
        with torch.no_grad():
            return [
                method.attribute(
                    x[None], target=label, sliding_window_shapes=(3, 56, 56), strides=(3, 28, 28),
                    perturbations_per_eval=8,
                )[0].sum(0).numpy()
                for label in classes
            ]  # fmt: skip

    return maps


def _markdown(title: str, figures: Sequence[MethodFigures]) -> str:
    lines = [f"## {title}", ""]
    for table in benchmark_tables(figures):
        lines += [f"### {table.title}", "", table.what, "", f"| method | {' | '.join(table.columns)} | n |",
                  f"|---{'|---' * len(table.columns)}|---|"]  # fmt: skip
        for row in table.rows:
            name = f"*{row.name}*" if row.control else row.name
            cells = [f"**{cell.text}**" if cell.best else cell.text for cell in row.cells]
            lines.append(f"| {name} | {' | '.join(cells)} | {row.count} |")
        lines.append("")
    return "\n".join(lines)


def _head(options: argparse.Namespace) -> str:
    made = ", ".join(f"{name} {number}" for name, number in _versions().items())
    sizes = f"--images {options.images} --grids {options.grids} --specimens {options.specimens}"
    command = f"python benchmarks/trust.py {options.pictures.name} --out FOLDER {sizes} --write {_PAGE}"
    return (
        f"# Benchmark of trust\n\nMade by `{command}`, for {_BACKBONE} ({platform.machine()}; {made}). Each "
        "figure is the mean over the samples with its standard error; the best of a column is bold, controls "
        "are in italics. A method that takes many forwards is asked about fewer samples (n). Of your own "
        "model, [`lucida benchmark`](../how-to/choose-a-method.md) measures the same.\n\nMaps of other "
        "libraries are judged as they come: pytorch-grad-cam cuts its own at 0. Its ScoreCAM and AblationCAM "
        "take a forward for each channel, and are not asked about mosaics and specimens.\n"
    )


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "captum", "grad-cam")}


if __name__ == "__main__":
    main()
