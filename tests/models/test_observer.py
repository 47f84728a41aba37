from __future__ import annotations

from functools import cached_property

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageEnhance
import pytest
from sklearn.metrics import roc_auc_score

from models.explainer import Explainer
from models.images.decode import decode_image
from models.images.encode import encode_image
from models.metrics.drift import Counts, compare_to_reference
from models.networks.transfer_model import TransferModel
from models.observer import Observer, build_reference
from pipelines.data.synthetic import SpecimenPlan, write_specimens
from pipelines.data.synthetic_drawing import Canvas

LABEL_SHARE = 0.3


class Watch:
    """An ImageNet network whose reference is half of some photographs; the other half are its requests."""

    def __init__(self, paths, requests=None):
        self.explainer = Explainer(TransferModel.imagenet("efficientnet_lite0"))
        mixed = [str(path) for path in np.random.default_rng(0).permutation(sorted(paths))]
        self.requests = mixed[1::2][:200] if requests is None else requests
        own = mixed[::2] if requests is None else mixed
        observed = [self._explain(PIL.Image.open(path)) for path in own]
        self.reference = build_reference(observed, classes=len(self.explainer.model.classes))
        self.explainer.reference = self.reference

    def _explain(self, pil):
        explanation = self.explainer.explain(decode_image(encode_image(pil.convert("RGB"), "png")))
        return Observer(self.explainer).observe_explanation(explanation)

    @cached_property
    def unchanged(self):
        """What is observed of the requests as they are."""
        return self.observe()

    def observe(self, change=lambda pil, n: pil, paths=None):
        return [
            self._explain(change(PIL.Image.open(path), n)) for n, path in enumerate(paths or self.requests)
        ]

    def drifted(self, observations):
        counts = Counts(self.reference)
        for item in observations:
            counts.add(item)
        return {result.figure for result in compare_to_reference(counts, self.reference) if result.alarm}


@pytest.fixture(scope="module")
def watch(photos):
    return Watch((photos / "hymenoptera").glob("*/*/*.jpg"))


def brighter(pil, n):
    return PIL.ImageEnhance.Brightness(pil).enhance(1.35)


def closer(pil, n):
    """The middle of the picture alone, as from a camera that was moved nearer."""
    width, height = pil.size
    return pil.crop((width // 4, height // 4, 3 * width // 4, 3 * height // 4))


@pytest.fixture(scope="module")
def drawings(tmp_path_factory):
    """Specimens of which 30 % of the test pictures get the collector's label in their corner."""
    plan = SpecimenPlan(train=1, val=40, test=40, side=240)
    return write_specimens(plan, tmp_path_factory.mktemp("many") / "butterflies")


def labelled(pil, n):
    if n % 10 >= 10 * LABEL_SHARE:
        return pil
    drawing = Canvas.__new__(Canvas)
    drawing.width, drawing.height = pil.size
    drawing.pixels, drawing.rng = np.asarray(pil.convert("RGB"), np.float32), np.random.default_rng(n)
    drawing.label("any")
    return PIL.Image.fromarray(drawing.pixels.astype(np.uint8))


@pytest.mark.soak
def test_a_collectors_label_on_three_of_ten_drawings_is_seen(drawings):
    paths = sorted(drawings.glob("val/*/*.*"))
    watch = Watch(paths, sorted(drawings.glob("test/*/*.*"))[:200])
    assert not watch.drifted(watch.unchanged)
    drifted = watch.drifted(watch.observe(labelled))
    print(drifted)
    assert drifted


@pytest.mark.soak
@pytest.mark.parametrize("change", [brighter, closer])
def test_a_planted_drift_is_seen_within_two_hundred_requests(watch, change):
    assert len(watch.requests) <= 200
    drifted = watch.drifted(watch.observe(change))
    print(change.__name__, drifted)
    assert drifted


@pytest.mark.soak
def test_a_new_class_is_seen_within_two_hundred_requests(watch, photos):
    others = sorted(str(path) for path in (photos / "caltech_animals").glob("train/*/*.jpg"))[:60]
    drifted = watch.drifted([*watch.unchanged[:140], *watch.observe(paths=others)])
    print(drifted)
    assert drifted


@pytest.mark.soak
def test_ten_windows_without_drift_raise_no_alarm(watch):
    observations = watch.unchanged
    random = np.random.default_rng(1)
    for _ in range(10):
        chosen = random.choice(len(observations), size=100, replace=False)
        assert not watch.drifted([observations[n] for n in chosen])


@pytest.mark.soak
def test_drawings_among_photographs_and_the_reverse_are_told_apart(watch, butterflies):
    """AUROC of the distance; in-distribution pictures are unusual no more often than the percentile says."""
    own = [item.figures["novelty"] for item in watch.unchanged]
    drawings = [str(path) for path in butterflies.glob("val/*/*")]
    other = [item.figures["novelty"] for item in watch.observe(paths=drawings)]
    area = roc_auc_score([0] * len(own) + [1] * len(other), own + other)
    alarms = np.mean([watch.reference.percentile(value) >= 99 for value in own])
    print(f"AUROC {area:.3f}, unusual {alarms:.3f} of {len(own)}")
    assert area >= 0.95
    assert alarms <= 0.03
