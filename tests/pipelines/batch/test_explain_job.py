"""Batch jobs: rows, overlays and pages; kills, resumption, Ray."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import pytest

from models.attribution.forward import run_forward
from models.attribution.registry import attribute_each
from models.bundle import load_bundle
from models.errors import UnknownChoice
from models.explainer import Explainer, ExplainOptions
from models.images.decode import read_image
from pipelines.batch.job import plan_job
from pipelines.batch.local import run_local
from pipelines.batch.sinks import overlay_name, read_rows
from pipelines.errors import DataError


@pytest.fixture(scope="module")
def loaded(bundle_folder):
    return load_bundle(bundle_folder)


@pytest.fixture
def folder(butterflies, tmp_path) -> Path:
    """Good pictures, broken ones, and names that would like to be somewhere else."""
    source = tmp_path / "pictures"
    shutil.copytree(butterflies / "val", source)
    (source / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    (source / "empty.png").write_bytes(b"")
    picture = source / "argus" / "argus_000.jpg"
    for name in ("we ird;$(x)\n.jpg", "an..odd..jpg", "same.jpg", "ünï.jpeg"):
        shutil.copy(picture, source / name)
    shutil.copy(picture, source / "argus" / "same.jpg")
    outside = tmp_path / "secret.jpg"
    shutil.copy(picture, outside)
    (source / "link.jpg").symlink_to(outside)
    return source


def rows_of(out: Path) -> list[dict]:
    return pq.read_table(out / "rows").to_pylist()


def test_every_picture_becomes_a_row_and_bad_ones_say_why(folder, loaded, tmp_path):
    done = run_local(plan_job(folder, Explainer(loaded)), loaded, tmp_path / "out")
    rows = {row["path"]: row for row in rows_of(done.out)}
    assert (done.pictures, done.errors) == (len(rows), 2)
    assert len(rows) == 20 + 2 + 6
    assert rows["broken.jpg"]["status"] == rows["empty.png"]["status"] == "error"
    assert "empty" in rows["empty.png"]["error"]
    assert rows["link.jpg"]["status"] == "ok", "a link is read wherever it leads"
    good = rows["argus/argus_000.jpg"]
    image = read_image(folder / "argus/argus_000.jpg")
    x, frame = loaded.model.geometry.prepare(image)
    forward = run_forward(loaded.model, x[None])
    label = int(forward.logits[0].argmax())
    assert good["prediction"] == loaded.model.classes[label]
    assert sum(score for _, score in good["scores"]) == pytest.approx(1)
    alone = attribute_each(forward, [label])[0]
    np.testing.assert_allclose(np.reshape(good["grid"], (7, 7)), alone.values, atol=1e-5)
    assert good["seen_box"] == pytest.approx(frame.seen_box)
    assert good["digest"] == image.sha256
    assert good["model_digest"] == loaded.provenance.digest


def test_further_targets_of_a_picture_are_those_that_are_asked_for_alone(folder, loaded, tmp_path):
    (folder / "bee").mkdir()
    shutil.copy(folder / "argus/argus_000.jpg", folder / "bee/seen.jpg")
    explainer = Explainer(loaded)
    job = plan_job(folder, explainer, also=("truth", "contrast", "top3"))
    rows = {row["path"]: row for row in rows_of(run_local(job, loaded, tmp_path / "out").out)}
    row = rows["bee/seen.jpg"]
    ranking = [label for label, _ in row["scores"]]
    by_role = {item["role"]: item for item in row["also"]}
    expected = {"contrast", "top2", "top3"} | ({"truth"} if ranking[0] != "bee" else set())
    assert set(by_role) == expected, "what the row's own map shows already is not there twice"
    assert [by_role[f"top{n}"]["target"] for n in (2, 3)] == ranking[1:]
    other = "bee" if ranking[0] != "bee" else ranking[1]
    assert (by_role["contrast"]["target"], by_role["contrast"]["against"]) == (ranking[0], other)
    image = read_image(folder / "bee/seen.jpg")
    for role, options in (("top2", ExplainOptions(target=ranking[1])),
                          ("contrast", ExplainOptions(target=ranking[0], against=other))):  # fmt: skip
        alone = explainer.explain(image, options).attributions[0]
        np.testing.assert_allclose(np.reshape(by_role[role]["grid"], (7, 7)), alone.values, atol=1e-5)
    assert {item["role"] for item in rows["same.jpg"]["also"]} == {"contrast", "top2", "top3"}
    assert rows["broken.jpg"]["also"] is None
    with pytest.raises(UnknownChoice, match="truth, contrast, top2"):
        plan_job(folder, explainer, also=("top1",))


def test_a_job_whose_results_lie_in_its_source_never_takes_them_for_input(butterflies, loaded, tmp_path):
    source = Path(shutil.copytree(butterflies / "val", tmp_path / "pictures"))
    out = source / "explained"
    explainer = Explainer(loaded)
    first = run_local(plan_job(source, explainer, out=out), loaded, out)
    assert list(out.rglob("*.jpg"))
    again = run_local(plan_job(source, explainer, out=out), loaded, out)
    assert first.pictures == again.pictures == again.resumed == 20


def test_what_systems_leave_behind_is_left_out_and_counted(butterflies, loaded, tmp_path):
    source = Path(shutil.copytree(butterflies / "val", tmp_path / "pictures"))
    thumbnails = source / "argus" / ".ipynb_checkpoints"
    thumbnails.mkdir()
    shutil.copy(source / "argus/argus_000.jpg", thumbnails / "copy.jpg")
    job = plan_job(source, Explainer(loaded))
    assert len(job.files) == 20
    assert job.left_out == {"argus/.ipynb_checkpoints": 1}


def test_overlays_are_safe_distinct_and_of_the_pictures_size(folder, loaded, tmp_path):
    out = run_local(
        plan_job(folder, Explainer(loaded), ExplainOptions(target="bee")), loaded, tmp_path / "out"
    ).out
    rows = [row for row in rows_of(out) if row["status"] != "error"]
    assert len({row["overlay"] for row in rows}) == len(rows), "same stem twice, nothing overwritten"
    for row in rows:
        assert (out / row["overlay"]).resolve().is_relative_to(out.resolve())
        assert PIL.Image.open(out / row["overlay"]).size == (row["width"], row["height"])
        assert row["target"] == "bee"
    page = (out / "index.html").read_text()
    assert "empty.png" in page
    assert all(row["overlay"] in page for row in rows)
    assert page.count("<script") == 2, "the rows and what shows them"
    assert "<script src" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium: apt-get install chromium")
def test_the_page_opens_in_a_real_browser(folder, loaded, tmp_path):
    out = run_local(plan_job(folder, Explainer(loaded)), loaded, tmp_path / "out").out
    shot = tmp_path / "page.png"
    command = [
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--hide-scrollbars", "--window-size=1200,1400",
        f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={shot}", (out / "index.html").as_uri(),
    ]  # fmt: skip
    subprocess.run(command, capture_output=True, timeout=90, check=True)
    pixels = np.asarray(PIL.Image.open(shot).convert("RGB"), int)
    assert pixels.shape == (1400, 1200, 3)
    coloured = (pixels.max(axis=2) - pixels.min(axis=2)) > 60
    assert coloured.mean() > 0.02, "the overlays are really shown"
    assert (pixels.min(axis=2) > 240).mean() > 0.2, "on paper"


def test_a_hostile_name_cannot_write_html(loaded, butterflies, tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    shutil.copy(next(butterflies.glob("val/argus/*.jpg")), source / "<img src=x onerror=alert(1)>.jpg")
    out = run_local(plan_job(source, Explainer(loaded)), loaded, tmp_path / "out").out
    assert "<img src=x" not in (out / "index.html").read_text()


@pytest.mark.soak
def test_a_killed_job_resumes_to_the_same_rows(folder, loaded, bundle_folder, tmp_path, monkeypatch):
    for number in range(150):
        shutil.copy(folder / "same.jpg", folder / f"more_{number:03d}.jpg")
    # Two processes have a thread each, wherever they were started.
    whole = run_local(plan_job(folder, Explainer(loaded)), loaded, tmp_path / "whole", processes=2).out
    out = tmp_path / "killed"
    command = [
        sys.executable,
        "-m",
        "pipelines.cli.app",
        "explain",
        str(folder),
        "--out",
        str(out),
        "--bundle",
        str(bundle_folder),
        "--processes",
        "2",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 90
    while not list(out.glob("rows/part-00000.parquet")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "_SUCCESS").exists()
    again = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "done before" in again.stdout
    assert rows_of(out) == rows_of(whole)
    assert (out / "_SUCCESS").exists()
    assert not list(out.rglob(".*.tmp"))


def test_another_jobs_folder_is_refused(folder, loaded, tmp_path):
    run_local(plan_job(folder, Explainer(loaded)), loaded, tmp_path / "out")
    with pytest.raises(DataError, match="another job"):
        run_local(plan_job(folder, Explainer(loaded), ExplainOptions(target="ant")), loaded, tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="not empty"):
        run_local(plan_job(folder, Explainer(loaded)), loaded, tmp_path / "full")


def test_the_same_names_in_another_folder_or_changed_are_another_job(folder, loaded, tmp_path):
    run_local(plan_job(folder, Explainer(loaded)), loaded, tmp_path / "out")
    other = shutil.copytree(folder, tmp_path / "other", symlinks=True)
    with pytest.raises(DataError, match="another job"):
        run_local(plan_job(other, Explainer(loaded)), loaded, tmp_path / "out")
    shutil.copy(folder / "argus/argus_001.jpg", folder / "same.jpg")
    with pytest.raises(DataError, match="another job"):
        run_local(plan_job(folder, Explainer(loaded)), loaded, tmp_path / "out")


def test_options_are_checked_before_any_work(folder, loaded, tmp_path):
    with pytest.raises(UnknownChoice, match="flamingo"):
        plan_job(folder, Explainer(loaded), ExplainOptions(target="wasp"))
    with pytest.raises(UnknownChoice, match="stage7"):
        plan_job(folder, Explainer(loaded), ExplainOptions(block="layer4"))
    with pytest.raises(DataError, match="no file or folder"):
        plan_job(tmp_path / "nowhere", Explainer(loaded))
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="no pictures"):
        plan_job(tmp_path / "none", Explainer(loaded))


def test_ctrl_c_ends_with_130_and_resumes(folder, bundle_folder, tmp_path):
    for number in range(400):
        os.link(folder / "same.jpg", folder / f"more_{number:03d}.jpg")
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "pipelines.cli.app",
        "explain",
        str(folder),
        "--out",
        str(out),
        "--bundle",
        str(bundle_folder),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 90
    while not list(out.glob("rows/*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in complaint
    assert json.loads((out / "job.json").read_text())["pictures"] == 428


@pytest.mark.soak
def test_ray_gives_the_rows_of_one_machine(folder, loaded, tmp_path):
    from pipelines.batch.ray import run_on_ray

    for number in range(60):
        os.link(folder / "same.jpg", folder / f"more_{number:03d}.jpg")
    planned = plan_job(folder, Explainer(loaded))
    alone = run_local(planned, loaded, tmp_path / "alone").out
    seen = []
    done = run_on_ray(
        planned, loaded, tmp_path / "ray", progress=lambda label, count, total: seen.append((count, total))
    )
    assert done.pictures == 88
    assert seen[-1] == (88, 88)
    here, there = rows_of(alone), rows_of(done.out)
    for one, other in zip(here, there, strict=True):
        assert (one["path"], one["prediction"], one["status"], one["error"]) == (
            other["path"],
            other["prediction"],
            other["status"],
            other["error"],
        )
        if one["grid"] is not None:
            np.testing.assert_allclose(one["grid"], other["grid"], atol=1e-5)
    assert run_on_ray(planned, loaded, tmp_path / "ray").resumed == 88


def test_overlay_names():
    assert overlay_name("a/x.jpg") != overlay_name("b/x.jpg")
    assert overlay_name("../../etc/passwd").count("/") == 0


def test_a_job_becomes_a_dataset_of_fiftyone(butterflies, bundle_folder, in_tmp, at_once):
    """In the layout of its importer: samples with a path, labels by their classes, heatmaps as files."""
    words = [
        "explain",
        str(butterflies / "val"),
        "--out",
        "out",
        "--bundle",
        str(bundle_folder),
        "--fiftyone",
    ]
    done = at_once(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = in_tmp / "out" / "fiftyone"
    assert "version" not in json.loads((folder / "metadata.json").read_text()), "which would be a database's"
    samples = json.loads((folder / "samples.json").read_text())["samples"]
    rows = {row["path"]: row for row in read_rows(in_tmp / "out")}
    assert len(samples) == len(rows)
    for sample in samples:
        picture = Path(sample["filepath"])
        assert picture.is_absolute()
        row = rows[picture.relative_to(butterflies / "val").as_posix()]
        assert sample["prediction"] == {
            "_cls": "Classification", "tags": [], "label": row["prediction"], "confidence": row["score"],
        }  # fmt: skip
        if row["status"] != "ok":
            assert "evidence" not in sample
            continue
        assert (sample["evidence"]["_cls"], sample["evidence"]["range"]) == ("Heatmap", [0, 255])
        heatmap = np.asarray(PIL.Image.open(folder / sample["evidence"]["map_path"]))
        with PIL.Image.open(picture) as opened:
            assert heatmap.shape[1] / heatmap.shape[0] == pytest.approx(
                opened.width / opened.height, rel=0.02
            )
        y, x = np.unravel_index(heatmap.argmax(), heatmap.shape)
        grid = np.array(row["grid"]).reshape(row["grid_rows"], row["grid_cols"])
        best = np.unravel_index(grid.argmax(), grid.shape)
        x0, y0, x1, y1 = row["seen_box"]
        scale = heatmap.shape[1] / row["width"]
        expected = (
            y0 + (best[0] + 0.5) * (y1 - y0) / len(grid),
            x0 + (best[1] + 0.5) * (x1 - x0) / len(grid[0]),
        )
        assert abs(y / scale - expected[0]) < (y1 - y0) / len(grid)
        assert abs(x / scale - expected[1]) < (x1 - x0) / len(grid[0])


def test_fiftyone_needs_pictures_that_are_files(butterflies, bundle_folder, in_tmp, at_once):
    shutil.make_archive("pictures", "zip", butterflies / "val")
    done = at_once("explain", "pictures.zip", "--out", "out", "--bundle", str(bundle_folder), "--fiftyone")
    assert done.returncode == 1
    assert "files of this machine" in " ".join(done.stderr.split())
    assert not (in_tmp / "out").exists()
