"""A way on from every answer: suggestions for an empty map, and a part of an answer where time is short."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing

import pytest

from models.cancellation import Deadline, deadline_scope
from service.inference.predictor import Predictor
from service.settings import Settings
from tests.support.asking import ask


@pytest.fixture(scope="module")
def predictor(gloomy_folder) -> Iterator[Predictor]:
    with closing(Predictor(gloomy_folder, Settings(torch_threads=2))) as opened:
        yield opened


@pytest.fixture(scope="module")
def bee(photos) -> bytes:
    return sorted((photos / "hymenoptera/val/bees").glob("*.jpg"))[0].read_bytes()


def plain(answer) -> dict:
    return json.loads(answer.model_dump_json())


def test_an_empty_map_comes_with_questions_that_the_service_answers(predictor, bee):
    answer = plain(ask(predictor, "explain", bee, target="never"))
    assert answer["evidence"][0]["status"] == "no_positive_evidence"
    assert "No part of the picture speaks for this class" in " ".join(answer["warnings"])
    assert {"against", "negative"} <= {name for item in answer["suggestions"] for name in item["options"]}
    for item in answer["suggestions"]:
        assert item["reason"].endswith(".")
        (evidence,) = plain(ask(predictor, "explain", bee, **item["options"]))["evidence"]
        assert evidence["status"] == "ok"
        assert evidence["negative"] == ("negative" in item["options"])
        assert ask(predictor, "heatmap", bee, **item["options"]).headers["X-Lucida-Status"] == "ok"
    assert plain(ask(predictor, "explain", bee, target="bee"))["suggestions"] == []


def test_what_if_without_a_box_covers_the_hottest_part_of_the_suggested_map(predictor, bee):
    answer = plain(ask(predictor, "whatif", bee, target="never"))
    assert any("The map for never is empty; covered is" in text for text in answer["warnings"])
    (first, *_) = plain(ask(predictor, "explain", bee, target="never"))["suggestions"]
    same = plain(ask(predictor, "whatif", bee, **first["options"]))
    assert answer["changes"] == same["changes"]
    assert answer["share"] > 0


def test_an_overlay_may_fade_and_says_so_and_the_values_stay(predictor, bee):
    plain_answer, faded = (
        plain(ask(predictor, "explain", bee, overlay="true", fade=fade))["evidence"][0]
        for fade in ("0", "0.3")
    )
    assert (plain_answer["overlay_fade"], faded["overlay_fade"]) == (0.0, 0.3)
    assert faded["grid"] == plain_answer["grid"]
    assert faded["overlay"] != plain_answer["overlay"]
    assert ask(predictor, "heatmap", bee, fade="0.3").headers["X-Lucida-Fade"] == "0.3"
    for wrong in ("0.95", "-0.1", "nan", "much"):
        with pytest.raises(ValueError, match="fade"):
            ask(predictor, "explain", bee, fade=wrong)


def test_an_answer_says_what_the_model_saw(predictor, bee):
    answer = plain(ask(predictor, "explain", bee))
    assert (answer["image"]["view"], answer["image"]["seen_share"]) == ("whole", 1.0)
    width, height = answer["image"]["width"], answer["image"]["height"]
    assert answer["evidence"][0]["seen_box"] == [0.0, 0.0, width, height]
    assert not any("cropped away" in text for text in answer["warnings"])


@pytest.mark.soak
def test_checks_that_are_cut_leave_the_map_and_those_that_were_made(predictor, bee):
    with deadline_scope(Deadline(6.0, budget=True)) as deadline:
        answer = plain(ask(predictor, "trust", bee, effort="full", target="bee"))
        assert deadline.remaining > 0
    assert answer["evidence"][0]["status"] == "ok"
    assert answer["shifts"] is not None, "the cheapest comes first"
    assert any(text.startswith("sweep: ") for text in answer["cut"])


def test_a_quick_audit_judges_by_fewer_control_maps(predictor, bee):
    quick, full = (
        plain(ask(predictor, "trust", bee, checks="faithfulness", target="bee", **effort))
        for effort in ({}, {"effort": "full"})
    )
    maps = [answer["evidence"][0]["faithfulness"]["control_maps"] for answer in (quick, full)]
    assert maps == [9, 19]
