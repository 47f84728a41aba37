"""What the tests share: real photographs, drawn specimens, and a bundle of the embedded backbone."""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from playwright.sync_api import Browser, sync_playwright

from models.bundle import CARD_FILE, load_bundle, save_bundle
from models.host_memory import keep_freed_memory
from models.method_choice import MethodChoice
from models.networks.transfer_model import TransferModel
from pipelines.data.synthetic import SpecimenPlan, write_specimens
from tests.support.serving import PROJECT, Serve, Served, start_service

os.environ.setdefault("LUCIDA_ENGINE", "eager")
"""The fastest engine differs from machine to machine, and with it the last digits; tests of the choice ask
for it."""

LONG_FILES = (
    "test_guides", "test_whole_path", "test_gate", "test_ray", "test_explanations", "test_interruptions",
    "test_finder", "test_failing_stores", "test_pool", "test_finetune", "test_review", "test_page",
    "test_jobs", "test_protocol", "test_load", "test_explain_job", "test_wheel", "test_tasks", "test_golden",
    "test_checks", "test_wrong_arguments", "test_features",
)  # fmt: skip
"""Files that take minutes, longest first: of two processes, none should begin one when the other is done."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the long files first."""
    places = {name: place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Say at once why a test failed: a run of an hour may be cut off before it tells."""
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        print(f"\n{report.nodeid} ({report.when}):\n{report.longreprtext[-3000:]}", flush=True)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Iterator[None]:
    """Say last what was not tested on this machine, and how to have it."""
    yield
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(str(report.longrepr[2]).removeprefix("Skipped: ") for report in skipped)
    needs = {reason: count for reason, count in reasons.items() if reason.startswith("needs ")}
    if needs:
        terminalreporter.section("not tested on this machine")
    for reason, count in sorted(needs.items()):
        terminalreporter.write_line(f"{count} tests: {reason}")


@pytest.fixture(autouse=True)
def _threads() -> None:
    """One for each core that this process of pytest has to itself; a predictor made by an earlier test leaves
    torch with one thread.
    """
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))


@pytest.fixture(scope="session", autouse=True)
def _memory() -> None:
    """Freed memory is kept, as the command line has it."""
    keep_freed_memory()


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Features of one test session in a folder of its own, also for the processes that tests start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUCIDA_CACHE", str(tmp_path_factory.mktemp("features")))
        yield


@pytest.fixture(scope="session")
def photos() -> Path:
    """The folder of real photographs, or a skip that says where it was looked for."""
    folder = Path(os.environ.get("LUCIDA_DATA", PROJECT.parent / "shared" / "data"))
    if not (folder / "hymenoptera").is_dir():
        pytest.skip(
            f"needs photographs, which {folder} lacks: set LUCIDA_DATA to the folder that has hymenoptera/"
        )
    return folder


@pytest.fixture(scope="session")
def butterflies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small set of specimens with train, val and test."""
    plan = SpecimenPlan(train=6, val=4, test=2, side=240)
    return write_specimens(plan, tmp_path_factory.mktemp("drawn") / "butterflies")


@pytest.fixture(scope="session")
def imagenet() -> TransferModel:
    """The embedded backbone with its ImageNet classifier."""
    return TransferModel.imagenet("efficientnet_lite0").requires_grad_(False)


@pytest.fixture(scope="session")
def bundle_folder(imagenet: TransferModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved bundle with real ImageNet features and a classifier of three of its classes."""
    names = ["ant", "bee", "flamingo"]
    rows = [imagenet.classes.index(name) for name in names]
    model = TransferModel.create("efficientnet_lite0", names)
    with torch.no_grad():
        model.classifier[1].weight.copy_(imagenet.classifier[1].weight[rows])
        model.classifier[1].bias.copy_(imagenet.classifier[1].bias[rows])
    folder = tmp_path_factory.mktemp("bundles") / "three"
    save_bundle(model, folder, name="three", run_id="0" * 32, metrics={"val_accuracy": 0.9})
    return folder


@pytest.fixture(scope="session")
def small_folder(bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model for an input of 96 pixels, a fifth of the work: where it matters what becomes of each
    picture, and not what is seen in it.
    """
    model = load_bundle(bundle_folder).model
    model.geometry = replace(model.geometry, resize=110, crop_height=96, crop_width=96)
    folder = tmp_path_factory.mktemp("small") / "three"
    save_bundle(model, folder, name="three", run_id="0" * 32)
    return folder


@pytest.fixture(scope="session")
def complete_folder(bundle_folder: Path, butterflies: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as `lucida package` leaves it: with a reference, and with a card and concepts beside
    it.
    """
    from models.explainer import Explainer
    from models.introspection.concept_set import write_concepts
    from pipelines.data.dataset import scan_folder
    from pipelines.evaluation.concepts import study_concepts
    from pipelines.evaluation.reference import measure_reference
    from pipelines.reports.concepts import describe_concepts

    bundle = load_bundle(bundle_folder)
    samples = scan_folder(butterflies)
    reference = measure_reference(Explainer(bundle), [*samples.train, *samples.val])
    folder = tmp_path_factory.mktemp("complete") / "three"
    best = MethodChoice("Which region is of this class?", "grad_cam", "top", "AUROC of its cell: 0.790.")
    digest = save_bundle(
        bundle.model, folder, name="three", run_id="0" * 32, reference=reference, best_methods=[best]
    )
    card = {"digest": digest, "html": "<h1>Card of three</h1><style>h1 { color: teal }</style>"}
    (folder / CARD_FILE).write_text(json.dumps({**card, "markdown": "# Card of three"}))
    explainer = Explainer(load_bundle(folder))
    study = study_concepts(explainer, samples, count=4, most=10, patches=3)
    write_concepts(
        describe_concepts(study, explainer, samples, {"model": "three"}).renamed(0, "wing"), folder
    )
    return folder


@pytest.fixture(scope="session")
def gloomy(imagenet: TransferModel) -> TransferModel:
    """Real features, and a class against which all speaks: its weights are below 0, the features above."""
    model = TransferModel.create("efficientnet_lite0", ["never", "ant", "bee"], view="whole")
    rows = [imagenet.classes.index(name) for name in ("ant", "bee")]
    with torch.no_grad():
        head = model.classifier[1]
        head.weight[1:].copy_(imagenet.classifier[1].weight[rows])
        head.bias[1:].copy_(imagenet.classifier[1].bias[rows])
        head.weight[0] = -0.01 * head.weight[1].abs() - 1e-3
        head.bias[0] = 0.0
    return model


@pytest.fixture(scope="session")
def gloomy_folder(gloomy: TransferModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved bundle of that model, which sees the whole picture."""
    folder = tmp_path_factory.mktemp("bundles") / "gloomy"
    save_bundle(gloomy, folder, name="gloomy")
    return folder


@contextmanager
def starting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """Yield a function that starts a service with LUCIDA_ settings; every one is stopped at the end."""
    begun: list[Served] = []

    def serve(bundle: Path, *, wait: bool = True, jobs: Path | None = None, **settings: str) -> Served:
        folder = tmp_path_factory.mktemp("service")
        own = {f"LUCIDA_{name.upper()}": value for name, value in settings.items() if name.islower()}
        other = {name: value for name, value in settings.items() if not name.islower()}
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LUCIDA_")}
        environment |= {
            "BENTOML_HOME": str(folder / "bentoml"),
            "BENTOML_DO_NOT_TRACK": "true",
            "OMP_WAIT_POLICY": "PASSIVE",
            "LUCIDA_BUNDLE": str(bundle),
            "LUCIDA_JOBS": str(jobs or folder / "jobs"),
            "LUCIDA_ENGINE": "eager",
            # Each of them imports torch and asks the model first, ten seconds of a core.
            "LUCIDA_WORKERS": "1",
            **own,
            **other,
        }
        served = start_service(PROJECT, folder / "log", environment, jobs=jobs or folder / "jobs")
        begun.append(served)
        if wait:
            served.wait_ready()
        return served

    try:
        yield serve
    finally:
        for served in begun:
            served.stop()


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """Start services; they end with the file, for each of them holds a gigabyte."""
    with starting(tmp_path_factory) as serve:
        yield serve


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory, bundle_folder: Path) -> Iterator[Served]:
    """One for the tests that only ask."""
    with starting(tmp_path_factory) as serve:
        yield serve(bundle_folder)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium; a skip where there is none."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 150 MB of its own, to be filled; a skip where one may not be mounted."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=150m", "tmpfs", folder],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"needs the right to mount a file system: run as root ({mounted.stderr.strip()})")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's database without a run in it, to be copied; making one takes seconds."""
    import mlflow

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def in_tmp(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder of its own, with an MLflow store and a Bento store of its own."""
    import mlflow

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "bentoml"))
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    mlflow.set_tracking_uri(uri)
    yield tmp_path
    mlflow.end_run()


@pytest.fixture
def at_once(in_tmp, monkeypatch, capsys) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """The same command in this process, which has imported torch and MLflow already: ten seconds less."""
    from pipelines.cli.app import main

    # As the command has it, which says so before MLflow is imported.
    level = logging.getLogger("mlflow").level
    logging.getLogger("mlflow").setLevel(logging.CRITICAL)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = dict(os.environ)

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["lucida", *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        code = ended.value.code
        return subprocess.CompletedProcess(words, code if isinstance(code, int) else 1, *capsys.readouterr())

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)
    logging.getLogger("mlflow").setLevel(level)
    os.environ.clear()
    os.environ.update(before)


def encoded(picture: PIL.Image.Image | np.ndarray, format: str = "PNG", **options: object) -> bytes:
    """A picture or an array of pixels as encoded bytes."""
    if isinstance(picture, np.ndarray):
        picture = PIL.Image.fromarray(picture)
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


@pytest.fixture
def encode() -> object:
    """The function that encodes pictures, for test modules that cannot import this one."""
    return encoded
