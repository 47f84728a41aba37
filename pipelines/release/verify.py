"""An answer of the service made again from its image and its bundle: does it still hold?

Nothing of the service is used: the image is decoded, prepared, run and explained by the models package,
with the settings that the answer names. What cannot be made again is said to be so, not passed over.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from models.attribution.registry import get_method
from models.attribution.result import INPUT_BLOCK, Attribution
from models.bundle import Bundle
from models.errors import LucidaError
from models.explainer import Explainer, ExplainOptions
from models.images.decode import DraftSize, decode_image
from models.networks.predictions import Prediction
from pipelines.errors import DataError

TOLERANCE = 0.02
"""Of scores, and of maps as a share of their largest value: between processors and engines in fp32."""
_COARSE = 0.15
"""The same where the answer was computed in bfloat16 or int8."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A comparison of one value of the answer."""

    what: str
    holds: bool
    says: str


def verify_answer(text: str | bytes, image: Path, bundle: Bundle) -> list[Finding]:
    """Compare an answer, as JSON, with the same computed anew; raises DataError for what is no answer."""
    answer = _read(text)
    try:
        return _compared(answer, image, bundle)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise DataError(
            f"The answer does not have the shape of one: {type(error).__name__} {error}."
        ) from error


def list_unverified(text: str | bytes) -> list[str]:
    """Return what :func:`verify_answer` does not make again of an answer: checks of many forwards, for the
    most part.
    """
    answer = _read(text)
    names = [name for name in ("agreement", "shifts", "sweep") if answer.get(name)]
    names += [
        f"{name} of the map for {item['label']}"
        for item in answer.get("evidence", ())
        for name in ("faithfulness", "sanity", "overlay")
        if item.get(name)
    ]
    return [*names, "warnings, timing"]


def _compared(answer: Mapping[str, Any], path: Path, bundle: Bundle) -> list[Finding]:
    provenance = answer["provenance"]
    findings = [
        _same("bundle", provenance["digest"], bundle.provenance.digest),
        _same("picture", provenance["image_sha256"], hashlib.sha256(path.read_bytes()).hexdigest()),
    ]
    if not all(finding.holds for finding in findings):
        return findings
    origin = bundle.provenance
    findings.append(_same("run", str(provenance["run_id"]), str(origin.run_id)))
    if origin.version is not None:
        findings.append(
            _same(
                "version",
                f"{provenance['model']}/{provenance['version']}",
                f"{origin.model}/{origin.version}",
            )
        )
    image = decode_image(path.read_bytes(), draft=_as_decoded(answer))
    if provenance.get("precision") == "int8":
        # Rounded by a table of its own, which fp32 does not follow; the bundle's int8 blocks do.
        explainer = Explainer(bundle, "openvino", precision="int8")
    else:
        explainer = Explainer(bundle)
    prepared = explainer.prepare(image)
    (ranking,) = explainer.predict([prepared])
    frame = prepared.frame
    allowed = TOLERANCE if provenance.get("precision", "fp32") == "fp32" else _COARSE
    findings.append(_scores(answer["predictions"], ranking, allowed))
    for item in answer.get("evidence", ()):
        name = f"map for {item['label']} by {item['method']} at {item['block']}"
        try:
            again = explainer.explain(prepared, _options(item)).attributions[0]
        except LucidaError as error:
            findings.append(Finding(name, False, f"It cannot be made again: {error}"))
            continue
        findings.append(_map(name, item, again, allowed))
        score = next(prediction.score for prediction in ranking if prediction.label == item["label"])
        findings.append(
            Finding(
                f"score of the {name}",
                abs(item["score"] - score) <= allowed,
                f"It is {score:.4f}, the answer says {item['score']:.4f}.",
            )
        )
        box = np.abs(np.array(item["seen_box"]) - np.array(frame.seen_box)).max()
        findings.append(
            Finding(f"place of the {name}", bool(box < 0.01), f"Its box is off by {box:.3f} pixels.")
        )
    return findings


def _read(text: str | bytes) -> Mapping[str, Any]:
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"The answer is not JSON: {error}.") from error
    missing = (
        {"provenance", "predictions", "image"} - set(answer) if isinstance(answer, dict) else {"provenance"}
    )
    if missing:
        raise DataError(f"This is no answer about a picture: {', '.join(sorted(missing))} is missing.")
    content: Mapping[str, Any] = answer
    return content


def _as_decoded(answer: Mapping[str, Any]) -> DraftSize | None:
    """Return what makes the decoder leave out as many pixels as it did then."""
    reduction = int(answer["provenance"].get("reduction", 1))
    sides = (int(answer["image"]["width"]), int(answer["image"]["height"]))
    return DraftSize(min(sides) // reduction, max(sides) // reduction) if reduction > 1 else None


def _options(item: Mapping[str, Any]) -> ExplainOptions:
    """Return the options that made one item of evidence, from its own settings."""
    settings = item.get("settings", {})
    names = {field.name for field in fields(get_method(item["method"]).parameters)}
    return ExplainOptions(
        target=item["label"],
        against=item.get("against"),
        block=None if item["block"] == INPUT_BLOCK else item["block"],
        method=item["method"],
        parameters={name: value for name, value in settings.items() if name in names},
        flip=bool(settings.get("flip", False)),
        noise=float(settings.get("noise", 0.0)),
        seed=int(settings.get("noise_seed", 0)),
    )


def _same(what: str, claimed: str, actual: str) -> Finding:
    says = (
        "It is the one that the answer names."
        if claimed == actual
        else f"The answer names {claimed}, not {actual}."
    )
    return Finding(what, claimed == actual, says)


def _scores(claimed: list[Mapping[str, Any]], ranking: list[Prediction], allowed: float) -> Finding:
    now = {item.label: item.score for item in ranking}
    if {item["label"] for item in claimed} != set(now):
        return Finding("scores", False, "The answer has other classes.")
    worst = max(abs(item["score"] - now[item["label"]]) for item in claimed)
    return Finding("scores", worst <= allowed, f"They differ by {worst:.2g} at most ({allowed} is allowed).")


def _map(name: str, item: Mapping[str, Any], again: Attribution, allowed: float) -> Finding:
    claimed = np.array(item["grid"]["values"], dtype=np.float64)
    if claimed.shape != again.values.shape:
        return Finding(name, False, f"Its grid is {claimed.shape}, made again it is {again.values.shape}.")
    scale = max(float(np.abs(again.values).max()), 1e-12)
    worst = float(np.abs(claimed - again.values).max()) / scale
    holds = worst <= allowed and item["status"] == again.status
    return Finding(name, holds, f"It differs by {worst:.2g} of its largest value ({allowed} is allowed).")
