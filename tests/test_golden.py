"""Golden files: what programs rely on, recorded once and compared after every change.

``LUCIDA_RECORD_GOLDEN=1 pytest tests/test_golden.py`` writes the files anew. Do that only for a change that
is meant, and say in the commit what changed and why.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import platform
import re
import time
from pathlib import Path
from typing import Any

import httpx
import mlflow
import numpy as np
import PIL.Image
import pytest

from models.bundle import load_bundle
from pipelines.training.checkpoint import RunFolder

GOLDEN = Path(__file__).with_name("golden")
IMAGES = ("argus.jpg", "caudata.png")
RECORD = "LUCIDA_RECORD_GOLDEN" in os.environ
VARYING = {"timing_ms", "digest", "id", "created", "started", "ended", "eta_seconds", "version", "versions"}
"""Fields whose values belong to one run or one release; that they are there is compared."""

QUESTIONS: dict[str, tuple[dict[str, str], ...]] = {
    "predict": ({},),
    "explain": (
        {},
        {"top_k": "2", "overlay": "true", "flip": "true"},
        {"target": "bee", "against": "ant", "method": "hires_cam", "block": "stage6.3"},
        {"method": "layer_cam", "noise": "0.1"},
        {"method": "grad_cam_plus_plus", "faithfulness": "true", "steps": "4", "control_maps": "3"},
        {"method": "guided_grad_cam"},
        {"method": "integrated_gradients", "effort": "quick"},
        {"method": "occlusion", "effort": "quick"},
        {"method": "rise", "effort": "quick"},
        {"method": "patch_occlusion"},
        {"method": "propagated_cam"},
    ),
    "heatmap": ({}, {"encoding": "png", "target": "ant"}, {"fade": "0.3"}),
    "trust": ({"checks": "shifts"},),
    "trace": ({}, {"picture": "true"}),
    "whatif": ({}, {"box": "40,60,160,180", "cover": "mean", "overlay": "true"}),
    "split": ({}, {"picture": "true"}),
    "activations": ({"channels": "2"}, {"blocks": "stem,top", "picture": "true"}),
}
MISTAKES: tuple[tuple[str, dict[str, str]], ...] = (
    ("explain", {"method": "lime"}),
    ("explain", {"target": "wasp"}),
    ("explain", {"noise": "7"}),
    ("explain", {"top_k": "99"}),
    ("trust", {"checks": "truth"}),
    ("whatif", {"box": "1,2,3"}),
    ("whatif", {"box": "5,5,5,9"}),
    ("predict", {"method": "rise"}),
    ("split", {"block": "top"}),
    ("activations", {"blocks": "conv9"}),
    ("concepts", {}),
)
READS = ("/model", "/anatomy", "/filters?block=stage2.1&channels=3&steps=2", "/samples", "/colours")
COMMANDS = (
    "", "specimens", "train", "rates", "promote", "review", "compare", "cache", "demo", "explain", "inspect",
    "anatomy", "atlas", "concepts", "name-concept", "package", "key", "verify", "drift",
)  # fmt: skip
WRONG_COMMANDS = (
    "nothing", "train --data nowhere", "train --set", "train --set epochs", "train --preset fast",
    "train --resume abc --seed 1", "train --resume abcdef", "promote", "promote no/such/name",
    "promote nobody", "review nobody", "explain nowhere --out x", "explain . --out x --bundle nowhere",
    "inspect nowhere.jpg",
    "anatomy nonet", "anatomy", "atlas stem --bundle nowhere --channels x", "specimens x --seed -1",
    "specimens x --shortcut moth", "verify nowhere.json --image nowhere.jpg --bundle x", "package nobody",
    "explain . --out x --on spark", "cache --drop abcdef",
)  # fmt: skip


def plain(value: Any) -> Any:
    """A value as a golden file has it: pictures as their size and mean colour, floats as they are."""
    if isinstance(value, dict):
        return {key: "…" if key in VARYING and value[key] is not None else plain(value[key]) for key in value}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, str) and value.startswith("data:image/"):
        return picture(base64.b64decode(value.split(",", 1)[1]))
    return value


def picture(data: bytes) -> dict[str, Any]:
    opened = PIL.Image.open(io.BytesIO(data))
    colour = np.asarray(opened.convert("RGB")).mean(axis=(0, 1)).round(1).tolist()
    return {"format": opened.format, "size": list(opened.size), "colour": colour}


def reply(response: httpx.Response) -> dict[str, Any]:
    kind = response.headers["content-type"]
    body = plain(response.json()) if kind == "application/json" else picture(response.content)
    own = {
        name: value
        for name, value in response.headers.items()
        if name in {"x-lucida-status", "x-lucida-label"}
    }
    return {"status": response.status_code, "type": kind, "headers": own, "body": body}


def machine() -> str:
    """The processor's name: others round floats in other places."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith(("model name", "flags"))]
    return f"{platform.machine()} {hash_of(' '.join(names[:2]))}"


def hash_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def compare(name: str, value: Any) -> None:
    """Hold a value against its golden file, or record it."""
    path = GOLDEN / f"{name}.json"
    content = json.loads(json.dumps(value))
    if RECORD:
        path.write_text(
            json.dumps({"machine": machine(), "value": content}, indent=1, ensure_ascii=False) + "\n"
        )
    golden = json.loads(path.read_text())
    tolerance = 1e-6 if golden["machine"] == machine() else 2e-3
    differences: list[str] = []
    walk(golden["value"], content, name, tolerance, differences)
    assert not differences, "\n".join(differences[:20])


def walk(expected: Any, value: Any, path: str, tolerance: float, differences: list[str]) -> None:
    if isinstance(expected, dict) and isinstance(value, dict):
        if list(expected) != list(value) and set(expected) != set(value):
            differences.append(f"{path}: {sorted(set(expected) ^ set(value))} on one side only")
        for key in expected.keys() & value.keys():
            loose = 1.5 if key == "colour" else tolerance
            walk(expected[key], value[key], f"{path}.{key}", loose, differences)
    elif isinstance(expected, list) and isinstance(value, list):
        if len(expected) != len(value):
            differences.append(f"{path}: {len(expected)} items became {len(value)}")
        for number, (one, other) in enumerate(zip(expected, value, strict=False)):
            walk(one, other, f"{path}[{number}]", tolerance, differences)
    elif isinstance(expected, float) and isinstance(value, int | float):
        if abs(expected - value) > tolerance * max(1.0, abs(expected)):
            differences.append(f"{path}: {expected} became {value}")
    elif isinstance(expected, str) and isinstance(value, str) and tolerance > 1e-4:
        # Figures within sentences are rounded: on another processor they may fall on the other side.
        if re.sub(r"[\d.]+", "0", expected) != re.sub(r"[\d.]+", "0", value):
            differences.append(f"{path}: {expected!r} became {value!r}")
    elif expected != value:
        differences.append(f"{path}: {expected!r} became {value!r}")


@pytest.mark.parametrize("route", QUESTIONS)
def test_answers_of_each_route(service, route):
    data = [(GOLDEN / name).read_bytes() for name in IMAGES]
    answers = {}
    for fields in QUESTIONS[route]:
        for name, content in zip(IMAGES[: 1 if len(fields) > 1 else 2], data, strict=False):
            asked = "&".join(f"{key}={value}" for key, value in fields.items())
            answers[f"{name}?{asked}"] = reply(service.ask(f"/{route}", content, **fields))
    if route in {"predict", "explain"}:
        files = [("image", ("p", content)) for content in (*data, b"no picture")]
        several = httpx.post(f"{service.url}/{route}", files=files, timeout=60, trust_env=False)
        answers["three at once"] = reply(several)
    compare(f"route_{route}", answers)


def test_refusals(service):
    content = (GOLDEN / IMAGES[0]).read_bytes()
    refused = {
        f"{route} {fields}": reply(service.ask(f"/{route}", content, **fields)) for route, fields in MISTAKES
    }
    refused["no picture"] = reply(service.ask("/explain", b"no picture"))
    refused["empty"] = reply(service.ask("/explain", b""))
    refused["cut off"] = reply(service.ask("/explain", content[:400]))
    refused["no route"] = reply(service.get("/nothing"))
    refused["a text"] = reply(
        httpx.post(f"{service.url}/explain", files={"image": (None, "x")}, trust_env=False)
    )
    compare("refusals", refused)


def test_reads(service):
    compare("reads", {route: reply(service.get(route)) for route in READS})


def test_open_api(service):
    compare("openapi", service.get("/openapi.json").json())


def test_answers_of_each_job(service):
    content = (GOLDEN / IMAGES[0]).read_bytes()
    asked: dict[str, dict[str, str]] = {
        "predict": {}, "explain": {"top_k": "2"}, "trust": {}, "trace": {}, "whatif": {},
        "split": {}, "activations": {"blocks": "stem", "channels": "1"},
    }  # fmt: skip
    submitted = {
        verb: service.ask(f"/jobs/{verb}", content, **fields).json()["id"] for verb, fields in asked.items()
    }
    filters = httpx.post(
        f"{service.url}/jobs/filters", files={"block": (None, "stem"), "steps": (None, "2")}, trust_env=False
    )
    submitted["filters"] = filters.json()["id"]
    answers = {}
    for verb, job in submitted.items():
        deadline = time.monotonic() + 120
        while service.get(f"/jobs/{job}").json()["state"] in {"queued", "running"}:
            assert time.monotonic() < deadline, verb
            time.sleep(0.2)
        answers[verb] = {
            "status": plain(service.get(f"/jobs/{job}").json()),
            "result": plain(service.get(f"/jobs/{job}/result").json()),
        }
    compare("jobs", answers)


def help_page(text: str) -> dict[str, Any]:
    """What a help page says: its sentence, and the options by name."""
    lines = [line.strip(" │╭╮╰╯─") for line in text.splitlines()]
    return {
        "says": next(line for line in lines if line and not line.startswith("Usage")),
        "usage": next((" ".join(line.split()) for line in lines if line.startswith("Usage")), ""),
        "options": sorted(set(re.findall(r"--[a-z][a-z-]+", text))),
    }


def test_help_of_each_command(at_once, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("NO_COLOR", "1")
    compare("help", {command: help_page(at_once(*command.split(), "--help").stdout) for command in COMMANDS})


def test_exit_codes_of_wrong_commands(at_once, in_tmp, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    codes = {}
    for command in WRONG_COMMANDS:
        done = at_once(*command.split())
        assert "Traceback" not in done.stderr, command
        codes[command] = done.returncode
    compare("exit_codes", codes)


def test_rows_of_a_batch(at_once, bundle_folder, tmp_path):
    import pyarrow.parquet as pq

    for name in IMAGES:
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes((GOLDEN / name).read_bytes())
    (tmp_path / "in/broken.jpg").write_bytes(b"no picture")
    done = at_once(
        "explain", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--bundle", str(bundle_folder),
        "--check", "what_if", "--check", "shifts", "--sheet", "trace",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    table = pq.read_table(tmp_path / "out/rows")
    rows = [{**row, "model_digest": "…"} for row in table.to_pylist()]
    out = tmp_path / "out"
    files = sorted(path.relative_to(out).as_posix() for path in out.rglob("*"))
    note = json.loads((out / "job.json").read_text())
    note |= {"key": "…", "model_digest": "…", "source": Path(note["source"]).name}
    schema = [str(item) for item in pq.read_schema(next((out / "rows").glob("*")))]
    compare("batch", {"schema": schema, "rows": rows, "files": files, "job": note})


def test_manifest_of_a_bundle(bundle_folder):
    manifest = json.loads((bundle_folder / "bundle.json").read_text())
    manifest["files"] = sorted(manifest["files"])
    compare("manifest", plain(manifest))


def test_names_that_a_run_has_in_mlflow(at_once, butterflies, in_tmp):
    done = at_once(
        "train", "--data", str(butterflies), "--preset", "quick", "--name", "wings", "--threads", "2",
        "--set", "phases.head.epochs=2", "--set", "class_weights=balanced", "--set", "sanity=block",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    client = mlflow.MlflowClient()
    version = client.get_model_version("wings", "1")
    run = client.get_run(version.run_id)
    (child,) = client.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{version.run_id}'")
    compare(
        "mlflow", {"run": named(client, run), "phase": named(client, child), "version": sorted(version.tags)}
    )


def named(client: mlflow.MlflowClient, run: Any) -> dict[str, Any]:
    names: list[str] = []

    def walk_artifacts(folder: str | None) -> None:
        for item in client.list_artifacts(run.info.run_id, folder):
            names.append(re.sub(r"[0-9a-f-]{36}", "UUID", item.path))
            if item.is_dir:
                walk_artifacts(item.path)

    walk_artifacts(None)
    return {
        "name": run.info.run_name.partition(" seed ")[0],
        "artifacts": sorted(set(names)),
        "metrics": sorted(run.data.metrics),
        "params": sorted(run.data.params),
        "tags": sorted(tag for tag in run.data.tags if "git" not in tag),
    }


def test_a_bundle_of_an_earlier_release_loads():
    loaded = load_bundle(GOLDEN / "bundle")
    origin = loaded.provenance
    assert (origin.model, origin.version, origin.run_id) == ("weather", "3", "1" * 32)
    assert loaded.model.classes == ["calm", "stormy"]
    assert loaded.sanity is not None
    assert list(loaded.sanity.disabled()) == ["occlusion"]


def test_a_run_folder_of_an_earlier_release_is_read():
    folder = RunFolder(GOLDEN / "run")
    plan, checkpoint = folder.read_plan(), folder.read_checkpoint()
    assert checkpoint is not None
    assert (plan.name, plan.config.phases[1].ema_decay) == ("wings", 0.9)
    assert [epoch.number for epoch in checkpoint.state.epochs] == [0, 1]
    assert [phase.after.phase for phase in checkpoint.done] == ["head"]
    assert {key.split(".")[0] for key in checkpoint.state.tensors} == {"model", "best", "adamw", "average"}
