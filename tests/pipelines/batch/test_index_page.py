"""The page of a batch job in a real browser: paged, filtered, sorted, also with a hundred thousand rows."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from playwright.sync_api import Page, expect

from models.bundle import load_bundle
from models.explainer import Explainer
from pipelines.batch.index_page import render_index
from pipelines.batch.job import plan_job
from pipelines.batch.local import run_local


@pytest.fixture(scope="module")
def job(photos, bundle_folder, tmp_path_factory):
    """A finished job on folders that are named by classes, one picture of it broken: (job, bundle, out)."""
    source = tmp_path_factory.mktemp("photos") / "my photos"
    for name, folder in (("bee", "bees"), ("ant", "ants"), ("elsewhere", "bees")):
        (source / name).mkdir(parents=True)
        for path in sorted((photos / "hymenoptera/val" / folder).glob("*.jpg"))[:3]:
            shutil.copy(path, source / name / f"{path.stem} #1?.jpg")
    (source / "bee/broken<!--<script>.jpg").write_bytes(b"no picture")
    bundle = load_bundle(bundle_folder)
    planned = plan_job(source, Explainer(bundle))
    out = run_local(planned, bundle, tmp_path_factory.mktemp("out") / "explained").out
    return planned, bundle, out


def opened(browser, path: Path) -> Page:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.faults = []
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.on("requestfailed", lambda asked: page.faults.append(asked.url))
    page.goto(path.as_uri())
    return page


def test_each_picture_stands_beside_its_map_and_errors_come_first(browser, job):
    page = opened(browser, job[2] / "index.html")
    cards = page.locator("article.card")
    expect(cards).to_have_count(10)
    expect(cards.first).to_contain_text("broken<!--<script>.jpg")
    sizes = page.evaluate("[...document.images].map(image => [image.complete, image.naturalWidth])")
    page.locator("article.card img").last.scroll_into_view_if_needed()
    page.wait_for_function("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert len(sizes) == 18
    assert page.faults == []


def test_it_filters_by_class_truth_status_and_name_and_sorts(browser, job):
    out = job[2]
    rows = pq.read_table(out / "rows").to_pylist()
    page = opened(browser, out / "index.html")
    cards = page.locator("article.card")
    predicted = [row["prediction"] for row in rows if row["prediction"]]
    page.locator("#prediction").select_option(predicted[0])
    expect(cards).to_have_count(predicted.count(predicted[0]))
    page.locator("#prediction").select_option("")
    page.locator("#truth").select_option("bee")
    expect(cards).to_have_count(4)
    wrong = [row for row in rows if row["path"].split("/")[0] in {"bee", "ant"} and row["prediction"]]
    wrong = [row for row in wrong if row["prediction"] != row["path"].split("/")[0]]
    page.locator("#truth").select_option("")
    if wrong:
        page.locator("#right").select_option("wrong")
        expect(cards).to_have_count(len(wrong))
        page.locator("#right").select_option("")
    page.locator("#status").select_option("error")
    expect(cards).to_have_count(1)
    page.locator("#status").select_option("")
    page.locator("#name").fill("ELSEWHERE")
    expect(cards).to_have_count(3)
    page.locator("#name").fill("")
    page.locator("#order").select_option("most sure first")
    surest = max((row for row in rows if row["score"]), key=lambda row: row["score"])
    expect(cards.first).to_contain_text(surest["path"])
    assert page.faults == []


def test_a_hundred_thousand_rows_are_paged_and_found(browser, job):
    planned, bundle, out = job
    some = [row for row in pq.read_table(out / "rows").to_pylist() if row["status"] != "error"]
    rows = [some[n % len(some)] | {"path": f"bee/{n:06d}.jpg", "score": n / 100_000} for n in range(100_000)]
    (out / "large.html").write_text(render_index(planned, bundle, rows, out))
    page = opened(browser, out / "large.html")
    cards = page.locator("article.card")
    expect(cards).to_have_count(48)
    expect(page.locator("nav").first).to_contain_text("page 1 of 2084 · 100,000 of 100,000 pictures")
    page.get_by_role("button", name="Next").first.click()
    expect(cards.first).to_contain_text("bee/000048.jpg")
    page.locator("#name").fill("099999")
    expect(cards).to_have_count(1)
    page.locator("#name").fill("")
    page.locator("#prediction").select_option(some[0]["prediction"])
    expect(page.locator("nav").first).to_contain_text("page 1 of")


def test_without_folders_of_classes_nothing_is_said_of_truth(browser, job, photos, tmp_path):
    source = tmp_path / "flat"
    source.mkdir()
    shutil.copy(sorted((photos / "hymenoptera/val/bees").glob("*.jpg"))[0], source)
    bundle = job[1]
    out = run_local(plan_job(source, Explainer(bundle)), bundle, tmp_path / "out").out
    page = opened(browser, out / "index.html")
    expect(page.locator("article.card")).to_have_count(1)
    expect(page.locator("#truth")).to_have_count(0)
    assert "not of the folder's class" not in page.content()
