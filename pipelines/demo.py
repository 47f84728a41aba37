"""The whole path in one go, for a first look: specimens, training, registry, Bento, a served explanation, a
batch.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from models.bundle import Bundle, load_bundle
from models.errors import LucidaError
from models.explainer import Explainer
from models.images.decode import read_image
from pipelines.batch.job import plan_job
from pipelines.batch.local import run_local
from pipelines.config.schema import TrainConfig
from pipelines.data.dataset import scan_folder
from pipelines.data.synthetic import SPECIES, SpecimenPlan, write_specimens
from pipelines.evaluation.classification import EvaluatedSample
from pipelines.progress import Reporter
from pipelines.release.package import package
from pipelines.release.promote import promote
from pipelines.reports.inspect import inspect_image, render_inspection
from pipelines.reports.review import review_run
from pipelines.tracking.registry import CHAMPION_ALIAS, fetch_bundle, find_champion
from pipelines.training.outcome import TrainedModel
from pipelines.training.train import train_model

NAME = "specimens"
_START_S = 120


@dataclass(frozen=True, slots=True)
class Demo:
    """The paths of everything that the demo wrote."""

    out: Path
    run_id: str
    bento: str
    image: Path
    explained: Path
    answer: Path
    batch: Path
    inspection: Path
    review: Path


def run_demo(out: Path, say: Callable[[str], None], reporter: Reporter) -> Demo:
    """Do everything once under ``out`` and leave nothing running; a second run trains another version."""
    say("1/6  Drawing butterflies whose diagnostic mark is known to the pixel")
    root = write_specimens(SpecimenPlan(), out / "specimens", progress=reporter.step)
    dataset = scan_folder(root)
    say("2/6  Fine-tuning: first the head on a frozen backbone, then the top blocks")
    trained = train_model(dataset, TrainConfig(sanity="block"), name=NAME, reporter=reporter)
    say("3/6  Promoting the new version, if it is better than the present champion")
    decision = promote(f"{NAME}/{trained.version}")
    say(f"     version {trained.version}: {decision.reason}")
    say("4/6  Packaging the champion as a Bento")
    packaged = package(f"{NAME}@{CHAMPION_ALIAS}")
    say("5/6  Serving it, and asking it to explain one picture")
    image = _choose_image(trained)
    with serve_bento(packaged.bento_tag, log=out / "service.log") as url:
        answer = _ask(url, image)
    explained, answer_file = _save(out, answer)
    top = answer["predictions"][0]
    say(f"     {image.name}: {top['label']} {top['score']:.0%} ({SPECIES[top['label']]})")
    say("6/6  Explaining the test folder as a batch, and reviewing the mistakes")
    batch = _batch(root / "test", out, packaged.name, reporter)
    say("     and putting that one picture to all the questions")
    inspected = _inspect(image, out, packaged.name, reporter)
    review = out / "review.html"
    review.write_text(review_run(trained.run_id, dataset, reporter=reporter))
    relative_image = Path(os.path.relpath(image))
    return Demo(
        out,
        trained.run_id,
        packaged.bento_tag,
        relative_image,
        explained,
        answer_file,
        batch,
        inspected,
        review,
    )


@contextmanager
def serve_bento(bento_tag: str, *, log: Path) -> Iterator[str]:
    """Run ``bentoml serve`` of a Bento as a process of its own on a free port of this machine, and end it on
    the way out.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "bentoml",
        "serve",
        bento_tag,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    with log.open("wb") as sink:
        process = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_ready(url, process, log)
        yield url
    finally:
        _end(process)


def _wait_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise LucidaError(
                f"The service ended while starting (exit code {process.returncode}); see {log}."
            )
        try:
            if httpx.get(f"{url}/readyz", timeout=2, trust_env=False).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass  # not listening yet
        time.sleep(0.3)
    raise LucidaError(f"The service was not ready within {_START_S} s; see {log}.")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Send SIGTERM to the whole group, so that no worker stays behind; SIGKILL if it takes longer than
    20 s.
    """
    for stop, patience_s in ((signal.SIGTERM, 20), (signal.SIGKILL, 5)):
        try:
            os.killpg(process.pid, stop)
            process.wait(patience_s)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
        else:
            return


def _choose_image(trained: TrainedModel) -> Path:
    """Return a test image that the model is right and sure about."""
    samples = trained.evaluations["test"].samples
    right = [item for item in samples if item.is_correct] or samples

    def order(item: EvaluatedSample) -> tuple[bool, float]:
        return item.truth != "argus", -item.top.score

    return min(right, key=order).sample.path


def _ask(url: str, image: Path) -> dict:  # type: ignore[type-arg]
    with image.open("rb") as file:
        reply = httpx.post(
            f"{url}/explain", files={"image": file}, data={"overlay": "true"}, timeout=60, trust_env=False
        )
    if reply.status_code != httpx.codes.OK:
        raise LucidaError(f"The service answered {reply.status_code}: {reply.text[:200]}")
    answer: dict = reply.json()  # type: ignore[type-arg]
    return answer


def _save(out: Path, answer: dict) -> tuple[Path, Path]:  # type: ignore[type-arg]
    explained, answer_file = out / "explained.jpg", out / "answer.json"
    explained.write_bytes(base64.b64decode(answer["evidence"][0]["overlay"].split(",", 1)[1]))
    answer_file.write_text(json.dumps(answer, indent=2))
    return explained, answer_file


def _champion(out: Path, name: str) -> tuple[Bundle, str]:
    """Return the champion's bundle, in a folder of its own, and its version."""
    champion = find_champion(name)
    number = str(champion.version) if champion is not None else "0"
    folder = out / f"champion-v{number}"
    if not folder.exists():
        fetch_bundle(f"{name}/{number}", folder)
    return load_bundle(folder), number


def _inspect(image: Path, out: Path, name: str, reporter: Reporter) -> Path:
    loaded, _ = _champion(out, name)
    inspection = inspect_image(read_image(image), image.name, loaded, progress=reporter.step)
    page = out / "inspection.html"
    page.write_text(render_inspection(inspection, loaded))
    return page


def _batch(source: Path, out: Path, name: str, reporter: Reporter) -> Path:
    """Explain a folder with the champion; each champion's rows go to a folder of its own."""
    loaded, number = _champion(out, name)
    target = out / f"batch-v{number}"
    explainer = Explainer(loaded)
    job = plan_job(source, explainer)
    run_local(job, loaded, target, explainer=explainer, progress=reporter.step)
    return target
