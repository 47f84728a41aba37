"""The how-to pages and the page of the Python API, followed literally in a copy of the project.

A block is what its first line says: ``python file=PATH`` is a new file, ``python append=PATH`` goes to the
end of one, ``diff`` is applied, ``bash`` and ``python run`` are run, and ``bash serve`` is served for the
``console`` block after it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.support.preloaded import Preloaded
from tests.support.serving import BIN, PROJECT, Served, run_service

_BLOCK = re.compile(r"```(\w+)(?: ([^\n]*))?\n(.*?)```", re.DOTALL)


_COMPARED = """
import numpy as np

from models import Explainer, ExplainOptions, load_bundle, read_image

explainer, image = Explainer(load_bundle("my_bundle")), read_image("photo.jpg")
one, other = (
    explainer.explain(image, ExplainOptions(method=method)).attributions[0].values
    for method in ("xgrad_cam", "grad_cam")
)
print(np.allclose(one, other, atol=1e-4 * abs(other).max()))
"""


@dataclass
class ProjectCopy:
    """A copy of the project in which a page is followed."""

    folder: Path
    preloaded: Preloaded

    def follow(self, page: str) -> list[str]:
        """Follow a page; return what its commands printed."""
        printed = []
        for language, note, text in _BLOCK.findall((PROJECT / "docs" / page).read_text()):
            if note.startswith("file="):
                path = self.folder / note.removeprefix("file=")
                assert not path.exists()
                path.write_text(text)
            elif note.startswith("append="):
                with (self.folder / note.removeprefix("append=")).open("a") as file:
                    file.write(f"\n\n{text}" if text.startswith("def ") else text)
            elif language == "diff":
                self._apply(text)
            elif note == "run":
                printed.append(self.run_python(text))
            elif language == "bash" and (not note or note.startswith("exit=")):
                code = int(note.removeprefix("exit=") or 0)
                for line in text.splitlines():
                    words = shlex.split(line)
                    printed.append(self._run(words, code=code))
        return printed

    def _apply(self, text: str) -> None:
        head, *lines = text.splitlines()
        path = self.folder / head.removeprefix("+++ ")
        before = "\n".join(line[1:] for line in lines if line.startswith(" "))
        after = "\n".join(line[1:] for line in lines)
        content = path.read_text()
        assert content.count(before) == 1, f"{head} has this {content.count(before)} times:\n{before}"
        path.write_text(content.replace(before, after))

    def _run(self, words: list[str], *, code: int = 0) -> str:
        environment = os.environ | {
            "PYTHONPATH": str(self.folder),
            "MLFLOW_TRACKING_URI": "sqlite:///mlflow.db",
        }
        if words[0] == "lucida":
            done = self.preloaded.run(words[1:], self.folder, environment)
        else:
            program = BIN / words[0] if (BIN / words[0]).exists() else Path(words[0])
            done = subprocess.run(
                [str(program), *words[1:]], cwd=self.folder, env=environment, capture_output=True, text=True,
                check=False,
            )  # fmt: skip
        assert done.returncode == code, f"{words}: {done.stdout[-1500:]}{done.stderr[-3000:]}"
        return done.stdout

    def run_python(self, code: str) -> str:
        return self._run([sys.executable, "-c", code])

    def check(self, *paths: str) -> None:
        """Hold the files that the page added to the project's linter and format."""
        self._run(["ruff", "check", "--quiet", *paths])
        self._run(["ruff", "format", "--check", "--quiet", *paths])


@pytest.fixture(scope="module")
def preloaded() -> Iterator[Preloaded]:
    process = Preloaded()
    yield process
    process.stop()


@pytest.fixture
def copy(preloaded: Preloaded, bundle_folder: Path, tmp_path: Path) -> ProjectCopy:
    """A copy of the project with a bundle, a photograph and a folder of pictures."""
    folder = tmp_path / "project"
    ignored = shutil.ignore_patterns("__pycache__", "node_modules")
    for name in ("models", "pipelines", "service"):
        shutil.copytree(PROJECT / name, folder / name, ignore=ignored)
    for name in ("pyproject.toml", "bentofile.yaml"):
        shutil.copy(PROJECT / name, folder / name)
    (folder / "my_bundle").symlink_to(bundle_folder, target_is_directory=True)
    (folder / "my_pictures").mkdir()
    for name in ("photo.jpg", "my_pictures/one.jpg", "my_pictures/two.jpg"):
        shutil.copy(PROJECT / "tests/golden/argus.jpg", folder / name)
    return ProjectCopy(folder, preloaded)


@pytest.mark.soak
def test_add_a_method(copy: ProjectCopy) -> None:
    copy.follow("how-to/add-a-method.md")
    (row,) = pq.read_table(copy.folder / "explained/rows").to_pylist()
    assert (row["method"], row["error"]) == ("xgrad_cam", None)
    # Before a global average pooling the gradient is even over the positions, whatever weights it: Grad-CAM.
    assert copy.run_python(_COMPARED).strip() == "True"
    copy.check("models/attribution/cam.py", "models/attribution/registry.py")


@pytest.mark.soak
def test_add_a_network(copy: ProjectCopy) -> None:
    *_, blocks, _ = copy.follow("how-to/add-a-network.md")
    assert blocks.split() == ["stem", *(f"stage{n}" for n in range(1, 7)), "top"]
    summary = json.loads((copy.folder / "inside/anatomy.json").read_text())
    assert summary["backbone"] == "mnasnet1_0"
    copy.check("models/networks/registry.py")


@pytest.mark.soak
def test_explain_a_model_you_have(copy: ProjectCopy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "bentoml"))
    *_, python = copy.follow("how-to/explain-a-model-you-have.md")
    assert python.split() == ["stages.3.blocks.1", "maps", "True"]
    with run_service(copy.folder, tmp_path, {"PYTHONPATH": str(copy.folder)}) as served:
        picture = next((copy.folder / "butterflies/val").rglob("*.jpg"))
        answer = served.ask("/explain", picture.read_bytes()).json()
    assert answer["provenance"]["backbone"] == "timm:resnet10t"
    assert answer["evidence"][0]["block"] == "layer4"


@pytest.mark.soak
def test_promote_by_a_policy(copy: ProjectCopy) -> None:
    _, trained, first, again = copy.follow("how-to/promote-by-a-policy.md")
    assert "registered butterflies version 1" in trained
    assert "is champion" in first
    assert "Look at gate.html" in again
    assert "May butterflies version 1 go live?" in (copy.folder / "gate.html").read_text()


@pytest.mark.soak
def test_explain_in_batches(copy: ProjectCopy) -> None:
    first, again, table = copy.follow("how-to/explain-in-batches.md")
    assert "2 pictures, 0 could not be used" in first
    assert "2 of them done before" in again
    assert table.strip() == "2"


@pytest.mark.soak
def test_find_shortcuts(copy: ProjectCopy) -> None:
    _, trained, found, again = copy.follow("how-to/find-shortcuts.md")
    assert "registered biased version 1" in trained
    assert "cincta: the same pixels at the same place, lower right" in found
    assert "1 shortcut found" in found
    assert "registered biased version 2" in again
    assert "cincta" in (copy.folder / "shortcuts/index.html").read_text()


@pytest.mark.soak
def test_find_concepts(copy: ProjectCopy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "bentoml"))
    _, trained, studied, named, _, packaged = copy.follow("how-to/find-concepts.md")
    assert "registered wings version 1" in trained
    assert "concept 11: in " in studied
    assert "mark of argus: concept " in studied
    assert "Concept 0 is 'my name for it' now." in named
    assert "is Bento model wings:" in packaged
    (kept,) = (tmp_path / "bentoml").rglob("models/wings/*/concepts.json")
    assert json.loads(kept.read_text())["names"][0] == "my name for it"


@pytest.mark.soak
def test_choose_a_method(copy: ProjectCopy) -> None:
    _, printed = copy.follow("how-to/choose-a-method.md")
    for question in ("Which region is of this class?", "What would the score lose?", "finest detail?"):
        assert question in printed
    measured = json.loads((copy.folder / "benchmark/benchmark.json").read_text())
    assert {row["task"] for row in measured["figures"]} >= {"deletion"}
    assert "Which to believe" in (copy.folder / "benchmark/index.html").read_text()


@pytest.mark.soak
def test_document_a_model(copy: ProjectCopy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "bentoml"))
    copy.follow("how-to/document-a-model.md")
    card = (copy.folder / "card/card.md").read_text()
    assert "Museum of Butterflies" in card
    assert "| 1 (a) | intended purpose, provider, version and earlier versions |" in card
    (bento,) = (tmp_path / "bentoml/bentos/butterflies").glob("*/sbom.cdx.json")
    assert '"machine-learning-model"' in bento.read_text()
    (signature,) = (tmp_path / "bentoml/models/butterflies").glob("*/signature.json")
    assert json.loads(signature.read_text())["algorithm"] == "ed25519"
    settings = {"PYTHONPATH": str(copy.folder), "LUCIDA_PUBLIC_KEY": str(copy.folder / "public.pem")}
    settings["BENTOML_HOME"] = str(tmp_path / "bentoml")
    with run_service(copy.folder, tmp_path, settings) as served:
        assert "Museum of Butterflies" in served.get("/card").text


@pytest.mark.soak
def test_export_to_onnx(copy: ProjectCopy) -> None:
    pytest.importorskip("onnxruntime", reason="needs ONNX: pip install 'camera-lucida[onnx]'")
    written, printed = copy.follow("how-to/export-to-onnx.md")
    assert "model.onnx" in written
    label, score, *shape = printed.split()
    assert label in ("ant", "bee", "flamingo")
    assert 0 < float(score) <= 1
    assert " ".join(shape) == "(1, 2, 7, 7)"


@pytest.mark.soak
def test_use_a_gpu_or_a_faster_engine(copy: ProjectCopy) -> None:
    (printed,) = copy.follow("how-to/use-a-gpu-or-a-faster-engine.md")
    assert "auto takes" in printed
    assert "batch 8" in printed


@pytest.mark.soak
def test_add_an_endpoint(copy: ProjectCopy, tmp_path: Path) -> None:
    copy.follow("how-to/add-an-endpoint.md")
    copy.check("service/operations/margin.py", "service/schemas/margin.py")
    page = (PROJECT / "docs/how-to/add-an-endpoint.md").read_text()
    (console,) = re.findall(r"```console\n(.*?)```", page, re.DOTALL)
    environment = {"LUCIDA_BUNDLE": "my_bundle", "PYTHONPATH": str(copy.folder)}
    with run_service(copy.folder, tmp_path, environment) as served:
        ask, submit, document = (
            json.loads(subprocess.check_output(shlex.split(line), cwd=copy.folder, text=True))
            for line in console.replace("$ curl", "curl -s")
            .replace("http://127.0.0.1:3000", served.url)
            .splitlines()
        )
        assert 0 <= ask["margin"] <= 1
        assert ask["label"] != ask["runner_up"]
        assert ask["provenance"]["model"] == "three"
        assert submit["verb"] == "margin"
        assert "/margin" in document["paths"]


@pytest.mark.soak
def test_add_a_sink(copy: ProjectCopy) -> None:
    copy.follow("how-to/add-a-sink.md")
    lines = [json.loads(line) for path in sorted((copy.folder / "explained/lines").iterdir())
             for line in path.read_text().splitlines()]  # fmt: skip
    rows = pq.read_table(copy.folder / "explained/rows").to_pylist()
    assert [line["path"] for line in lines] == ["one.jpg", "two.jpg"]
    assert [line["score"] for line in lines] == [row["score"] for row in rows]
    copy.check("pipelines/batch/json_lines.py")


def test_the_page_of_the_python_api(copy: ProjectCopy) -> None:
    first, options, audit = copy.follow("reference/python.md")
    assert "grad_cam top ok" in first
    assert (copy.folder / "why.png").stat().st_size > 10_000
    assert "Unknown class 'wasp'; choose one of: ant, bee, flamingo" in options
    assert audit.strip()


@pytest.mark.soak
def test_ask_from_python(service: Served, tmp_path: Path) -> None:
    page = (PROJECT / "docs/how-to/ask-from-python.md").read_text()
    code = "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    for name in ("bee.jpg", "ant.jpg"):
        shutil.copy(PROJECT / "tests/golden/argus.jpg", tmp_path / name)
    assert "http://127.0.0.1:3000" in code
    printed = subprocess.check_output(
        [sys.executable, "-c", code.replace("http://127.0.0.1:3000", service.url)], cwd=tmp_path, text=True,
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
    )  # fmt: skip
    assert "422 unknown_choice Unknown class 'wasp'; choose one of: ant, bee, flamingo" in printed
    assert "100%" in printed
    assert len(printed.splitlines()) >= 7
    assert (tmp_path / "heatmap.png").stat().st_size > 1000, "BentoML's client drew it"


def test_the_page_of_the_python_api_names_every_name() -> None:
    import models

    page = (PROJECT / "docs/reference/python.md").read_text()
    for name in models.__all__:
        assert re.search(rf"`{name}\b|, {name}\b", page), name
        assert getattr(models, name) is not None
    with pytest.raises(AttributeError, match="it has: "):
        models.explain_everything  # noqa: B018


def test_importing_models_loads_no_torch() -> None:
    code = "import sys, models; print('torch' in sys.modules, 'Explainer' in dir(models))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["False", "True"]
