"""The model card: what is known is there with its interval, what nobody has said is said to be missing."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import mlflow
import pytest

from models.bundle import load_bundle
from models.errors import ConfigError
from models.method_checks import MethodCheck, RandomizationCheck
from models.method_choice import MethodChoice
from pipelines.reports.annex_iv import POINTS
from pipelines.reports.card_sections import explanation_section, performance_section
from pipelines.reports.intended_use import FIELDS, read_intended_use
from tests.pipelines.tracking.test_registry import registered

INTENDED = """
intended_use = "Telling ants | bees <b>apart</b>"
provider = "A museum"
out_of_scope = ["Living animals", "Persons"]
"""


def wilson(share, count):
    """The interval by its formula (Wilson 1927), at 95 %."""
    z = 1.959964
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count**2)) / (1 + z * z / count)
    return middle - half, middle + half


def test_a_card_is_written_logged_and_named_by_the_version(complete_folder, at_once, in_tmp, browser):
    registered(complete_folder, "three", 0.9)
    (in_tmp / "intended.toml").write_text(INTENDED)
    done = at_once("card", "three", "--intended", "intended.toml", "--out", "papers")
    assert done.returncode == 0, done.stdout + done.stderr
    text, html = ((in_tmp / "papers" / name).read_text() for name in ("card.md", "card.html"))
    assert "Telling ants \\| bees \\<b\\>apart\\</b\\>" in text
    assert "<b>apart</b>" not in html
    assert "Not stated: who uses it" in text
    assert "It was not judged by a policy." in text
    digest = load_bundle(complete_folder).provenance.digest
    assert digest in text
    assert digest in html
    client = mlflow.MlflowClient()
    version = client.get_model_version("three", "1")
    assert version.tags["card"] == "card/card.html"
    assert mlflow.artifacts.load_text(f"runs:/{version.run_id}/card/card.md") == text
    page = browser.new_page(viewport={"width": 390, "height": 800})
    page.goto(f"file://{in_tmp}/papers/card.html")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.get_by_role("heading", name="Annex IV of the EU AI Act").is_visible()
    page.close()


def test_accuracies_have_the_interval_that_their_pictures_allow(complete_folder):
    bundle = load_bundle(complete_folder)
    bundle.manifest["metrics"].update({"val_accuracy": 0.9, "val_loss": 0.3, "test_accuracy": 1.0})
    bundle.manifest["dataset"].update({"val": 40, "test": 12})
    classes = [{"label": "ant", "pictures": 20, "precision": None, "recall": 0.75, "f1": None, "auroc": None}]
    section = performance_section(bundle, {"val": classes})
    metrics, by_class = section.tables
    rows = {row[:2]: row[3] for row in metrics.rows}
    low, high = wilson(0.9, 40)
    assert rows["val", "accuracy"] == f"{low:.3f} to {high:.3f} (40 pictures)"
    assert rows["test", "accuracy"].endswith("to 1.000 (12 pictures)")
    assert rows["val", "loss"] == "-"
    low, high = wilson(0.75, 20)
    assert by_class.rows == [("ant", "20", "-", "0.750", f"{low:.3f} to {high:.3f}")]


def test_methods_are_shown_as_they_were_checked_also_those_whose_maps_were_empty(complete_folder):
    bundle = load_bundle(complete_folder)
    checks = {
        "grad_cam": MethodCheck({"head": 0.2, "stage1.0": 0.1}, False, "Its maps change.", 0.3),
        "layer_cam": MethodCheck({"head": 0.95}, False, "Its maps change.", 0.96),
        "rise": MethodCheck({}, False, "It could not be checked: its maps came out empty."),
    }
    best = MethodChoice("Which region is of this class?", "grad_cam", "top", "AUROC 0.8.")
    none = MethodChoice("What would the score lose?", None, None, "No method is above chance.")
    section = explanation_section(
        replace(bundle, sanity=RandomizationCheck(checks, 4, 0), best_methods=(best, none))
    )
    checked, chosen = section.tables
    assert checked.rows == [
        ("grad_cam", "0.20", "0.10", "0.30", "allowed"),
        ("layer_cam", "0.95", "0.95", "0.96", "whatever the class"),
        ("rise", "-", "-", "-", "It could not be checked: its maps came out empty."),
    ]
    assert [row[1] for row in chosen.rows] == ["grad_cam at top", "none"]


def test_points_of_the_act_are_covered_only_by_what_somebody_has_said():
    points = {point.number: point for point in POINTS}
    assert points["1 (a)"].coverage(()) == "in part"
    assert points["1 (a)"].coverage(("intended_use", "provider")) == "covered"
    assert points["7"].coverage(()) == "not covered"
    assert points["7"].coverage(("standards",)) == "covered"
    assert points["8"].coverage(tuple(FIELDS)) == "not covered"
    assert "how they were labelled" in points["2 (d)"].missing(("data_provenance",))
    assert {name for point in POINTS for name in point.stated} <= set(FIELDS)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("purpose = 'x'", "it may have: intended_use, users"),
        ("users = 3", "must be a text or a list of texts"),
        ("users = []", "must be a text or a list of texts"),
        ("users = ['', 'b']", "must be a text or a list of texts"),
        ("users =", "is not TOML"),
    ],
)
def test_a_file_that_states_something_else_is_refused(tmp_path, content, reason):
    path = tmp_path / "intended.toml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=reason):
        read_intended_use(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_intended_use(tmp_path / "absent.toml")


def test_a_service_shows_the_card_that_its_model_was_packaged_with(start, complete_folder):
    served = start(complete_folder)
    page = served.get("/card")
    assert page.text.startswith("<h1>Card of three")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    markdown = served.get("/card", params={"format": "markdown"})
    assert markdown.text == "# Card of three"
    assert markdown.headers["content-type"].startswith("text/markdown")
    assert served.get("/card", params={"format": "pdf"}).json()["error"].endswith("html, markdown.")


def test_a_bundle_without_a_card_says_so_and_one_of_another_is_refused(service, complete_folder, tmp_path):
    from models.errors import BundleError
    from service.inference.stored_card import read_card

    assert service.get("/card").json()["kind"] == "no_card"
    assert read_card(tmp_path, "a" * 64) is None
    with pytest.raises(BundleError, match="another bundle"):
        read_card(complete_folder, "a" * 64)
    (tmp_path / "card.json").write_text(json.dumps({"digest": 3}))
    with pytest.raises(BundleError, match="not a proper card"):
        read_card(tmp_path, "a" * 64)
