"""The sections of a model card, each from one source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from models.attribution.registry import METHODS
from models.bundle import WEIGHTS_FILE, Bundle
from models.explainer import Explainer
from models.networks.transfer_model import HEAD
from models.reference import FIGURES
from pipelines.reports.intended_use import FIELDS
from pipelines.tracking.registry import RegisteredVersion

Stated = Mapping[str, Sequence[str]]
NOTHING = "-"
"""Stands in a cell without a figure."""
_MOST_CLASSES = 60
_INTENDED = (
    "intended_use", "users", "out_of_scope", "human_oversight", "risks", "cybersecurity", "changes",
    "standards",
)  # fmt: skip
_SHARES = ("accuracy", "balanced_accuracy", "macro_f1", "auroc", "loss", "ece", "mean_average_precision")


@dataclass(frozen=True, slots=True)
class CardTable:
    """A table of a section."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class CardSection:
    """A section of a card."""

    title: str
    paragraphs: list[str] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    tables: list[CardTable] = field(default_factory=list)


def model_section(version: RegisteredVersion, bundle: Bundle, stated: Stated) -> CardSection:
    """Say which model this is."""
    model, geometry = bundle.model, bundle.model.geometry
    names = model.classes[:_MOST_CLASSES]
    more = f" and {len(model.classes) - len(names)} more" if len(model.classes) > len(names) else ""
    return CardSection(
        "The model",
        facts={
            "registered as": f"{version.name} version {version.version}",
            "aliases": ", ".join(version.aliases) or "none",
            **_stated_facts(stated, ("provider", "contact", "licence")),
            "answers": f"{model.scoring.task}: {', '.join(names)}{more}",
            "network": f"{model.backbone.name}, {len(model.block_names)} blocks",
            "input": f"{geometry.crop_height} x {geometry.crop_width} pixels, view {geometry.view}",
            "weights": f"{bundle.manifest['files'][WEIGHTS_FILE][:12]} (SHA-256)",
            "run": version.run_id or "none",
            "bundle's digest": bundle.provenance.digest,
        },
    )


def intended_section(stated: Stated) -> CardSection:
    """Say what it is for, in its owner's words."""
    facts = _stated_facts(stated, _INTENDED)
    missing = [FIELDS[name].lower() for name in _INTENDED if name not in stated]
    paragraphs = [f"Not stated: {', '.join(missing)}."] if missing else []
    return CardSection("Intended use", paragraphs, facts)


def training_section(bundle: Bundle) -> CardSection:
    """Say how it came about."""
    settings: Mapping[str, Any] = bundle.manifest.get("training", {})
    if "adopted" in settings:
        text = f"Adopted as it was from {settings['adopted']}; how it was trained is not known here."
        return CardSection("How it was made", [text])
    if not settings:
        return CardSection("How it was made", ["The bundle does not say."])
    text = (
        f"Fine-tuned in phases from {settings.get('backbone', bundle.provenance.backbone)} "
        f"({settings.get('weights', 'pretrained')} weights). The run holds config.toml and "
        "environment.txt to do it again."
    )
    return CardSection("How it was made", [text], {name: str(value) for name, value in settings.items()})


def data_section(
    bundle: Bundle, described: Mapping[str, Any] | None, issues: Mapping[str, Any] | None, stated: Stated
) -> CardSection:
    """Say what it was trained and judged on, and what is odd about that."""
    dataset: Mapping[str, Any] = bundle.manifest["dataset"]
    if not dataset:
        return CardSection("Data", ["It was registered without data: nothing is known of how well it does."])
    facts = {name.replace("_", " "): str(value) for name, value in dataset.items()}
    facts |= _stated_facts(stated, ("data_provenance", "labelling"))
    paragraphs = []
    if described is not None:
        shared = len(described.get("pictures_on_both_sides", []))
        paragraphs.append(f"{shared} held-out pictures are among the training pictures.")
    if issues is not None:
        paragraphs.append(
            f"Of {issues['inspected']} pictures {len(issues['label_errors'])} have labels that may be wrong, "
            f"and {len(issues['near_duplicates'])} held-out pictures are almost copies of training pictures."
        )
    return CardSection("Data", paragraphs, facts)


def performance_section(bundle: Bundle, classes: Mapping[str, list[dict[str, Any]]]) -> CardSection:
    """Say how well it does: metrics by split, accuracy and recall with 95 % intervals (Wilson 1927)."""
    metrics: Mapping[str, float] = bundle.manifest["metrics"]
    dataset, task = bundle.manifest["dataset"], bundle.model.scoring.task
    rows = []
    for split in ("val", "test"):
        for name in _SHARES:
            value = metrics.get(f"{split}_{name}")
            if value is not None:
                count = int(dataset.get(split, 0)) if name == "accuracy" and task != "multilabel" else 0
                rows.append((split, name.replace("_", " "), f"{value:.3f}", _interval(value, count)))
    if not rows:
        return CardSection("How well it does", ["It was not measured."])
    tables = [CardTable("Metrics", ("split", "metric", "value", "95 % interval"), rows)]
    for split, listed in classes.items():
        tables.append(
            CardTable(
                f"By class, {split}",
                ("class", "pictures", "precision", "recall", "95 % interval of recall"),
                [_class_row(row) for row in listed[:_MOST_CLASSES]],
            )
        )
    return CardSection("How well it does", _calibration(metrics), tables=tables)


def explanation_section(bundle: Bundle) -> CardSection:
    """Say how its answers are explained, and what the explanations are worth."""
    explainer = Explainer(bundle)
    paragraphs = [
        f"By default {METHODS[explainer.default_method].title} at the block "
        f"{explainer.default_block(explainer.default_method)}.",
        "A map says where in the picture the score of a class comes from, not why that place matters, and "
        "not what the model would do with another picture. Its cells are coarse: a place is known to one "
        "cell.",
    ]
    rows = []
    if bundle.sanity is None:
        paragraphs.append("No method was checked against shuffled weights.")
    else:
        for name, check in bundle.sanity.methods.items():
            steps = [check.similarity.get(HEAD), *[*check.similarity.values()][-1:], check.other_class]
            figures = ["-" if value is None else f"{value:.2f}" for value in steps]
            figures += ["-"] * (3 - len(figures))
            blind = "whatever the class" if check.class_blind else "allowed"
            verdict = "barred" if check.disabled else blind
            rows.append((name, *figures, verdict if check.similarity else check.reason))
    columns = ("method", "with the head shuffled", "with all shuffled", "for another class", "verdict")
    tables = [CardTable("Rank correlation with the trained model's maps", columns, rows)] if rows else []
    if bundle.best_methods:
        best = [(choice.question, str(choice), choice.why) for choice in bundle.best_methods]
        tables.append(
            CardTable("Which method to believe, by a benchmark", ("question", "method", "why"), best)
        )
    metrics = bundle.manifest["metrics"]
    # The classifier has an AUROC of its own; those of maps stand beside a share of the area.
    regions = tuple(name.removesuffix("area") for name in metrics if name.endswith("_area"))
    located = {
        name.replace("_", " "): f"{value:.3f}"
        for name, value in metrics.items()
        if regions and name.startswith(regions)
    }
    return CardSection("Explanations", paragraphs, located, tables)


def limits_section(bundle: Bundle, stated: Stated) -> CardSection:
    """Say what is known against it."""
    geometry = bundle.model.geometry
    paragraphs = []
    if geometry.view == "crop":
        paragraphs.append("It sees the middle of a picture only: what lies outside the crop cannot matter.")
    if "known_shortcuts" not in stated:
        paragraphs.append(
            "No shortcut is stated. That none is known does not mean that there is none: the review shows "
            "where the evidence lies."
        )
    facts = _stated_facts(stated, ("known_shortcuts", "limitations"))
    return CardSection("Limits and known shortcuts", paragraphs, facts)


def gate_section(verdict: Mapping[str, Any] | None, tags: Mapping[str, str]) -> CardSection:
    """Say whether it may go live, and by whose decision."""
    if verdict is None:
        forced = tags.get("promotion.forced")
        text = f"Promoted without the gate: {forced}." if forced else "It was not judged by a policy."
        return CardSection("The gate", [text])
    names = ("judged by", "judged at", "policy", "policy's digest", "champion", "data set", "override")
    rows = [(row["title"], row["status"], row["reason"]) for row in verdict["checks"]]
    paragraphs = [verdict["summary"]]
    if verdict["override"] != "none":
        paragraphs.append(f"What blocked was overridden: {verdict['override']}")
    return CardSection(
        "The gate",
        paragraphs,
        {name: str(verdict[name]) for name in names if name in verdict},
        [CardTable("Checks", ("check", "verdict", "what was measured"), rows)],
    )


def production_section(bundle: Bundle, stated: Stated) -> CardSection:
    """Say how it is watched."""
    facts = _stated_facts(stated, ("monitoring",))
    if bundle.reference is None:
        text = "Its bundle has no reference, so drift and unusual pictures cannot be told."
        return CardSection("In production", [text], facts)
    reference = bundle.reference
    rows = [
        (FIGURES[name], f"{values[len(values) // 2]:.3f}", f"{values[0]:.3f} to {values[-1]:.3f}")
        for name, values in reference.figures.items()
    ]
    text = (
        f"The service holds what it is asked against {reference.count} validation pictures (GET /drift, "
        "Prometheus), and calls pictures unusual that are further from them than 99 % of them."
    )
    table = CardTable("The validation pictures in figures", ("figure", "median", "range"), rows)
    return CardSection("In production", [text], facts, [table])


def versions_section(bundle: Bundle) -> CardSection:
    """Say by which packages it was made, and the digests of its files."""
    files = {f"{name} (SHA-256)": digest for name, digest in bundle.manifest["files"].items()}
    return CardSection("Versions", facts={**bundle.manifest["versions"], **files})


def _stated_facts(stated: Stated, names: Sequence[str]) -> dict[str, str]:
    return {FIELDS[name]: " ".join(stated[name]) for name in names if name in stated}


def _interval(share: float, count: int) -> str:
    if not count:
        return NOTHING
    from scipy.stats import binomtest

    low, high = binomtest(round(share * count), count).proportion_ci(method="wilson")
    return f"{low:.3f} to {high:.3f} ({count} pictures)"


def _class_row(row: Mapping[str, Any]) -> tuple[str, ...]:
    recall, count = row["recall"], int(row["pictures"])
    figures = (NOTHING if row[name] is None else f"{row[name]:.3f}" for name in ("precision", "recall"))
    interval = NOTHING if recall is None else _interval(recall, count).partition(" (")[0]
    return (str(row["label"]), str(count), *figures, interval)


def _calibration(metrics: Mapping[str, float]) -> list[str]:
    error = metrics.get("test_ece", metrics.get("val_ece"))
    if error is None:
        return []
    temperature = metrics.get("temperature")
    by = f", after a temperature of {temperature:.2f}" if temperature is not None else ""
    return [f"Scores are off by {error:.1%} on average{by} (expected calibration error)."]
