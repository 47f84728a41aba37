"""A way on from an empty map: each suggestion is a question that shows something, whoever asks it."""

from __future__ import annotations

import numpy as np
import pytest

from models.attribution.forward import run_forward
from models.attribution.registry import METHODS, attribute_each
from models.attribution.suggestions import find_suggestions
from models.attribution.targets import make_target
from models.cancellation import Deadline, deadline_scope
from models.errors import ExplanationError
from models.explainer import Explainer, ExplainOptions
from models.images.decode import read_image


@pytest.fixture(scope="module")
def image(photos):
    return read_image(sorted((photos / "hymenoptera/val/bees").glob("*.jpg"))[0])


@pytest.fixture(scope="module")
def empty(gloomy, image):
    """The explanation of the class for which nothing speaks."""
    explanation = Explainer(gloomy).explain(image, ExplainOptions(target="never"))
    assert explanation.attributions[0].status == "no_positive_evidence"
    return explanation


def test_an_empty_map_has_a_suggestion_of_each_kind_the_very_question_first(gloomy, empty):
    suggestions = Explainer(gloomy).suggest(empty)
    first, *_, last = suggestions
    runner_up = max(empty.predictions, key=lambda item: (item.label != "never", item.score))
    assert first.options["against"] == runner_up.label
    assert runner_up.label in first.reason
    assert last.options["negative"] == "true"
    assert last.reason == "What speaks against never."
    assert {"block", "method"} <= set(first.options)
    assert all(item.options["target"] == "never" for item in suggestions)


def test_each_suggestion_asked_as_it_says_shows_its_map(gloomy, image, empty):
    explainer = Explainer(gloomy)
    suggestions = explainer.suggest(empty)
    assert suggestions
    for suggestion in suggestions:
        options = dict(suggestion.options)
        negative = options.pop("negative", "false") == "true"
        (attribution,) = explainer.explain(image, ExplainOptions(**options, negative=negative)).attributions
        assert attribution.status == "ok"
        np.testing.assert_array_equal(attribution.values, suggestion.attribution.values)


def test_a_map_with_evidence_needs_no_suggestion(gloomy, image):
    explainer = Explainer(gloomy)
    assert explainer.suggest(explainer.explain(image, ExplainOptions(target="bee"))) == ()


def test_disabled_methods_are_not_suggested(empty):
    enabled = ("grad_cam", "layer_cam")
    disabled = {name for name in METHODS if name not in enabled}
    suggestions = find_suggestions(empty.forward, empty.attributions[0], disabled=disabled)
    assert suggestions
    assert {item.options["method"] for item in suggestions} <= set(enabled)


def test_without_time_what_was_found_is_returned(empty):
    with deadline_scope(Deadline(0.0)):
        assert find_suggestions(empty.forward, empty.attributions[0], disabled=()) == ()


@pytest.mark.parametrize("method", ["grad_cam", "hires_cam", "integrated_gradients"])
def test_what_speaks_against_a_class_is_its_map_with_the_sign_changed(gloomy, image, method):
    x, _ = gloomy.geometry.prepare(image)
    forward = run_forward(gloomy, x[None])
    targets = [make_target(gloomy.classes, 2, negative=negative) for negative in (False, True)]
    parameters = METHODS[method].parameters.from_names({}, quick=True)
    own, against = (
        attribute_each(forward, [target], method=method, parameters=parameters)[0].values
        for target in targets
    )
    np.testing.assert_allclose(against, -own, atol=1e-5 * np.abs(own).max())


def test_a_contrast_has_no_negative(gloomy, image):
    with pytest.raises(ExplanationError, match="both sides"):
        Explainer(gloomy).explain(image, ExplainOptions(target="ant", against="bee", negative=True))
