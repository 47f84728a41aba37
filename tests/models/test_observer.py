from __future__ import annotations

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
from models.reference import Reference

LABEL_SHARE = 0.3


class Watch:
    """An ImageNet network whose reference is half of some photographs; the other half are its requests."""

    def __init__(self, paths):
        self.explainer = Explainer(TransferModel.imagenet("efficientnet_lite0"))
        mixed = np.random.default_rng(0).permutation(sorted(paths))
        self.requests = [str(path) for path in mixed[1::2]][:200]
        observed = [self._explain(PIL.Image.open(path)) for path in mixed[::2]]
        self.reference = build_reference(observed, classes=len(self.explainer.model.classes))
        self.explainer.reference = self.reference

    def _explain(self, pil):
        explanation = self.explainer.explain(decode_image(encode_image(pil.convert("RGB"), "png")))
        return Observer(self.explainer).observe_explanation(explanation)

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


def labelled(pil, n):
    """A printed card in the corner of 30 % of the pictures."""
    if n % 10 >= 10 * LABEL_SHARE:
        return pil
    pil = pil.convert("RGB")
    draw, (width, height) = PIL.ImageDraw.Draw(pil), pil.size
    x, y = int(0.55 * width), int(0.72 * height)
    draw.rectangle((x, y, width, height), fill="white")
    for line in range(4):
        top = y + (line + 1) * (height - y) // 6
        draw.line((x + 4, top, width - 6, top), fill="black", width=max(2, height // 90))
    return pil


@pytest.mark.soak
@pytest.mark.parametrize("change", [brighter, closer, labelled])
def test_a_planted_drift_is_seen_within_two_hundred_requests(watch, change):
    assert len(watch.requests) <= 200
    drifted = watch.drifted(watch.observe(change))
    counts = Counts(watch.reference)
    print(change.__name__, drifted)
    assert drifted


@pytest.mark.soak
def test_a_new_class_is_seen_within_two_hundred_requests(watch, photos):
    others = sorted(str(path) for path in (photos / "caltech_animals").glob("train/*/*.jpg"))[:60]
    drifted = watch.drifted(watch.observe(paths=[*watch.requests[:140], *others]))
    print(drifted)
    assert drifted


@pytest.mark.soak
def test_ten_windows_without_drift_raise_no_alarm(watch):
    observations = watch.observe()
    random = np.random.default_rng(1)
    for _ in range(10):
        chosen = random.choice(len(observations), size=100, replace=False)
        assert not watch.drifted([observations[n] for n in chosen])


@pytest.mark.soak
def test_drawings_among_photographs_and_the_reverse_are_told_apart(watch, butterflies):
    """AUROC of the distance; in-distribution pictures are unusual no more often than the percentile says."""
    own = [item.figures["novelty"] for item in watch.observe()]
    drawings = [str(path) for path in butterflies.glob("val/*/*")]
    other = [item.figures["novelty"] for item in watch.observe(paths=drawings)]
    area = roc_auc_score([0] * len(own) + [1] * len(other), own + other)
    alarms = np.mean([watch.reference.percentile(value) >= 99 for value in own])
    print(f"AUROC {area:.3f}, unusual {alarms:.3f} of {len(own)}")
    assert area >= 0.95
    assert alarms <= 0.03
