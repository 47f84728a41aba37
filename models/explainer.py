"""One object explains: from an image to predictions, attributions, their scale, warnings and provenance.

Service, jobs, batch, inspection, verification, review and phase snapshots all ask an :class:`Explainer`; none
of them assembles the steps itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import PIL.Image
import torch
from torch import Tensor

from models.attribution.allowed import (
    barred_methods,
    check_allowed,
    check_tells_classes_apart,
    methods_for_others,
)
from models.attribution.forward import ForwardPass, predict_logits, run_forward
from models.attribution.registry import DEFAULT_METHOD, default_method, get_method
from models.attribution.result import Attribution, FrozenSettings
from models.attribution.scaling import attribute_scaled
from models.attribution.smoothing import Smoothing
from models.attribution.suggestions import Suggestion, find_suggestions
from models.attribution.targets import Target, choose_targets
from models.backends.base import Backend
from models.backends.eager import EagerBackend
from models.backends.quantized import read_quantized
from models.backends.registry import create_backend
from models.bundle import Bundle, BundleProvenance
from models.errors import DeadlineExceeded, ExplanationError, LucidaError, OutOfDeviceMemory, UnknownChoice
from models.images.decode import Image
from models.images.frame import Frame
from models.metrics.layer_sweep import find_usual_block
from models.metrics.warnings import image_warnings, map_warnings
from models.networks.predictions import Prediction, class_index, rank_classes
from models.networks.transfer_model import TransferModel
from models.visualization.notebook import render_notebook
from models.visualization.overlay import draw_overlay

Stage = Callable[[str], AbstractContextManager[object]]
"""Is entered round each stage of the work, "model" and "explain", for whoever measures time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainOptions:
    """Options of an explanation: target, block, method and its parameters; :meth:`Explainer.check` checks the
    names.
    """

    target: str | None = None
    """A class by name or number; the highest score without."""
    against: str | None = None
    """A class to hold it against: why this, not that."""
    negative: bool = False
    """Explain what speaks against the target."""
    top_k: int = 1
    """Explain the k highest scores, where there is no target."""
    block: str | None = None
    """Block to read; :meth:`Explainer.default_block` without."""
    method: str | None = None
    """A method of the table; the first that is not disabled for the model without."""
    parameters: Mapping[str, Any] = field(default_factory=FrozenSettings)
    """Parameters of the method by name, over its defaults."""
    quick: bool = False
    """Whether costly methods start from fewer steps or masks."""
    flip: bool = False
    """Average over the image and its mirror image."""
    noise: float = 0.0
    """Average over noisy images: standard deviation, as a share of the image's range."""
    samples: int = 8
    seed: int = 0
    """Number of the noisy images, and their seed."""

    @property
    def smoothing(self) -> Smoothing:
        """Variations to average over; raises ConfigError for figures out of range."""
        return Smoothing(flip=self.flip, noise=self.noise, samples=self.samples, seed=self.seed)


Reduce = Callable[[ExplainOptions, int], tuple[ExplainOptions, list[str]]]
"""(checked options, number of targets) to the options for which there is time, and what was left out."""


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """An image as the model takes it."""

    image: Image
    x: Tensor = field(repr=False)
    """(3, H, W)."""
    frame: Frame
    warnings: tuple[str, ...]
    """What is lost between the image and the model."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """An image with its predictions and the evidence for them."""

    image: Image
    frame: Frame
    predictions: tuple[Prediction, ...]
    """All classes, highest score first."""
    attributions: tuple[Attribution, ...]
    """One for each target."""
    full_scale: float | None
    """What full colour stands for in an overlay, for all attributions; None without positive evidence."""
    warnings: tuple[str, ...]
    """What a reader should know before trusting it."""
    skipped: tuple[str, ...]
    """What there was no time for."""
    provenance: BundleProvenance | None
    """The bundle that explained; None for a model that is no bundle yet."""
    forward: ForwardPass = field(repr=False, compare=False)
    """The pass that the attributions were read from, for further questions about the same image."""

    def score(self, attribution: Attribution) -> float:
        """Return the score of the class that an attribution explains."""
        return next(item.score for item in self.predictions if item.index == attribution.index)

    def overlay(
        self, attribution: Attribution | None = None, *, max_side: int = 1600, fade: float = 0.0
    ) -> PIL.Image.Image:
        """Draw an attribution over the image, the first one by default; see draw_overlay for ``fade``."""
        chosen, scale = attribution if attribution is not None else self.attributions[0], self.full_scale
        return draw_overlay(self.image, self.frame, chosen, max_side=max_side, full_scale=scale, fade=fade)

    def _repr_html_(self) -> str:
        """Show itself in a notebook: overlays, scores, warnings."""
        overlays = (
            (item.target.name, f"{item.target.name}, {item.method} at {item.block}",
             self.overlay(item, max_side=400))
            for item in self.attributions
        )  # fmt: skip
        return render_notebook(overlays, self.predictions, (*self.warnings, *self.skipped))


class Explainer:
    """The one object that explains images by a model; every method may be called from many threads, none
    changes the model.
    """

    def __init__(
        self,
        source: Bundle | TransferModel,
        backend: Backend | str = "eager",
        *,
        precision: str = "auto",
        threads: int = 1,
    ) -> None:
        """Explain by a bundle's model on a backend, or by a model as it is.

        Raises as :func:`models.backends.registry.create_backend` does.
        """
        bundle = source if isinstance(source, Bundle) else None
        if not isinstance(backend, str):
            self.backend = backend
        elif isinstance(source, Bundle):
            quantized = read_quantized(source.folder, source.provenance.digest)
            self.backend = create_backend(
                backend, source.model, probe=source.probe[0], threads=threads, precision=precision,
                quantized=quantized,
            )  # fmt: skip
        else:
            self.backend = EagerBackend(source)
        self.model = self.backend.model
        self.provenance = bundle.provenance if bundle is not None else None
        self.reference = bundle.reference if bundle is not None else None
        self._checks = bundle.sanity.methods if bundle is not None and bundle.sanity is not None else {}
        self.barred = barred_methods(self.model, self._checks)
        """Methods whose maps of this model mean nothing, with the reason."""
        self.disabled = methods_for_others(self.model) | self.barred
        """Those and the methods that are for other networks, with the reason."""
        self._usual_blocks: dict[str, str] = {}
        self.class_blind = {
            name: check.reason
            for name, check in self._checks.items()
            if check.class_blind and name not in self.disabled
        }
        """Methods whose maps are of whatever the network responds to, with the reason: they are asked for no
        class of one's choice."""
        best = default_method(self.disabled | self.class_blind)
        self.default_method = best or default_method(self.disabled) or DEFAULT_METHOD

    def check(self, options: ExplainOptions) -> ExplainOptions:
        """Return the options with every name as the model has it and every default filled in.

        Raises UnknownChoice, ConfigError or ExplanationError for what cannot be asked of this model.
        """
        classes = self.model.classes
        target, against = (
            None if name is None else classes[class_index(name, classes)]
            for name in (options.target, options.against)
        )
        if target is not None:
            choose_targets(classes, [], name=target, against=against, negative=options.negative)
        method = options.method or self.default_method
        block = options.block or self.default_block(method)
        self.model.index_of(block)
        parameters = get_method(method).parameters.from_names(options.parameters, quick=options.quick)
        options.smoothing  # noqa: B018 - raises for figures out of range
        self.check_enabled(method)
        if against is not None or options.negative:
            check_tells_classes_apart(method, self.class_blind, self.disabled)
        return replace(
            options, target=target, against=against, block=block, method=method,
            parameters=FrozenSettings(asdict(parameters)),
        )  # fmt: skip

    def default_block(self, method: str) -> str:
        """Return the block that a method reads where none is asked for; raises UnknownChoice."""
        if method not in self._usual_blocks:
            self._usual_blocks[method] = find_usual_block(get_method(method), self.model)
        return self._usual_blocks[method]

    def check_enabled(self, method: str) -> None:
        """Raise ExplanationError for a method that is disabled for this model."""
        check_allowed(method, self.disabled)

    def randomization_note(self, method: str) -> str | None:
        """Return how a method did when the weights were shuffled; None where that was not checked."""
        check = self._checks.get(method)
        return check.reason if check is not None else None

    def prepare(self, image: Image) -> PreparedImage:
        """Return the image as the model takes it, with its way back."""
        x, frame = self.model.geometry.prepare(image)
        return PreparedImage(image, x, frame, tuple(image_warnings(image, frame)))

    def predict(self, images: Sequence[PreparedImage]) -> list[list[Prediction]]:
        """Return all classes of each image, highest score first; raises ExplanationError for bad logits."""
        logits = predict_logits(self.backend, torch.stack([item.x for item in images]))
        return [self.rank(item) for item in logits]

    def explain(
        self,
        image: Image | PreparedImage,
        options: ExplainOptions | None = None,
        *,
        reduce: Reduce | None = None,
        partial: bool = False,
        stage: Stage = lambda name: nullcontext(),
    ) -> Explanation:
        """Explain one image.

        ``reduce`` may lower the options to the time that is left; with ``partial`` the attributions may be
        left out altogether where the deadline passes, which is raised as DeadlineExceeded otherwise. Raises
        as :meth:`check` does.
        """
        prepared = image if isinstance(image, PreparedImage) else self.prepare(image)
        (result,) = self._explain([prepared], options, None, reduce, partial, stage)
        if isinstance(result, LucidaError):
            raise result
        return result

    def explain_batch(
        self,
        images: Sequence[PreparedImage],
        options: ExplainOptions | None = None,
        *,
        targets: Sequence[Sequence[Target]] | None = None,
    ) -> list[Explanation | LucidaError]:
        """Explain several images in one pass; one without finite scores has its error in its place.

        ``targets`` are explained instead of those that the options name: as many for every image.
        """
        try:
            return self._explain(images, options, targets, None, False, lambda name: nullcontext())
        except OutOfDeviceMemory:
            if len(images) < 2:
                raise
        middle = len(images) // 2
        halves = (slice(0, middle), slice(middle, None))
        parts = [(images[half], None if targets is None else targets[half]) for half in halves]
        return [result for part, own in parts for result in self.explain_batch(part, options, targets=own)]

    def attribute(
        self,
        images: Sequence[PreparedImage],
        targets: Sequence[Sequence[Target]],
        *,
        options: ExplainOptions | None = None,
    ) -> list[tuple[Attribution, ...]]:
        """Return the attributions of given targets alone; raises the first image's error there is."""
        results = self.explain_batch(images, options, targets=targets)
        for result in results:
            if isinstance(result, LucidaError):
                raise result
        return [result.attributions for result in results if isinstance(result, Explanation)]

    def suggest(
        self, explanation: Explanation, attribution: Attribution | None = None
    ) -> tuple[Suggestion, ...]:
        """Return other questions whose maps show something, where an explanation's map is empty: of the
        first one by default.

        Takes an explanation of :meth:`explain`, whose pass holds one image.
        """
        chosen = attribution if attribution is not None else next(iter(explanation.attributions), None)
        if chosen is None:
            return ()
        return find_suggestions(explanation.forward, chosen, disabled=self.disabled | self.class_blind)

    def _explain(
        self, images: Sequence[PreparedImage], options: ExplainOptions | None,
        targets: Sequence[Sequence[Target]] | None, reduce: Reduce | None, partial: bool, stage: Stage,
    ) -> list[Explanation | LucidaError]:  # fmt: skip
        options = self.check(options or ExplainOptions())
        with stage("model"):
            x = torch.stack([item.x for item in images])
            forward = run_forward(self.model, x, block=options.block, backend=self.backend)
            rankings = [self._rank_or_error(logits, options) for logits in forward.logits]
        with stage("explain"):
            chosen = targets or [self._targets(ranking, options) for ranking in rankings]
            maps, skipped = self._maps(forward, chosen, options, reduce, partial)
        return [
            ranking
            if isinstance(ranking, LucidaError)
            else self._explanation(item, forward, ranking, *scaled, skipped)
            for item, ranking, scaled in zip(images, rankings, maps, strict=True)
        ]

    def _maps(
        self, forward: ForwardPass, targets: Sequence[Sequence[Target]], options: ExplainOptions,
        reduce: Reduce | None, partial: bool,
    ) -> tuple[list[tuple[list[Attribution], float | None]], list[str]]:  # fmt: skip
        method, skipped = str(options.method), list[str]()
        try:
            if reduce is not None:
                options, skipped = reduce(options, len(targets[0]))
            parameters = get_method(method).parameters.from_names(options.parameters)
            maps = attribute_scaled(
                forward, targets, method=method, smoothing=options.smoothing, parameters=parameters
            )
        except DeadlineExceeded:
            if not partial:
                raise
            skipped = [*skipped, f"evidence: there was no time for the map by {method}"]
            return [([], None) for _ in targets], skipped
        return maps, skipped

    def _explanation(
        self,
        item: PreparedImage,
        forward: ForwardPass,
        ranking: list[Prediction],
        attributions: list[Attribution],
        full_scale: float | None,
        skipped: Sequence[str],
    ) -> Explanation:
        scores = {prediction.index: prediction.score for prediction in ranking}
        warnings = [
            text
            for each_map in attributions
            for text in map_warnings(each_map, scores[each_map.index], full_scale)
        ]
        return Explanation(
            image=item.image,
            frame=item.frame,
            predictions=tuple(ranking),
            attributions=tuple(attributions),
            full_scale=full_scale,
            warnings=(*item.warnings, *warnings),
            skipped=tuple(skipped),
            provenance=self.provenance,
            forward=forward,
        )

    def rank(self, logits: Tensor) -> list[Prediction]:
        """Return all classes by one image's logits (classes,); raises ExplanationError for bad ones."""
        return rank_classes(logits, self.model.classes, self.model.scoring)

    def _rank_or_error(self, logits: Tensor, options: ExplainOptions) -> list[Prediction] | LucidaError:
        """Return the ranking of an image, or why it cannot be explained by these options."""
        try:
            ranking = self.rank(logits)
            if options.target not in (None, ranking[0].label):
                check_tells_classes_apart(str(options.method), self.class_blind, self.disabled)
        except ExplanationError as error:
            return error
        return ranking

    def _targets(self, ranking: list[Prediction] | LucidaError, options: ExplainOptions) -> list[Target]:
        classes = self.model.classes
        if isinstance(ranking, LucidaError):
            # Something must stand in its place of the batch; its error is what is returned.
            return [Target(0, classes[0])] * (1 if options.target is not None else options.top_k)
        if options.top_k < 1:
            raise UnknownChoice("top_k", options.top_k, ("a whole number from 1",))
        return choose_targets(
            classes, ranking, name=options.target, against=options.against, top_k=options.top_k,
            negative=options.negative,
        )  # fmt: skip
