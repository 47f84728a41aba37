"""Sections of a model card beside the points of Annex IV of Regulation (EU) 2024/1689, the AI Act's technical
documentation of high-risk systems: which section says something about a point, and what nobody has said.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from pipelines.reports.intended_use import FIELDS

_OWNERS_SECTION = ("Intended use",)
"""What only the owner can fill."""

Coverage = Literal["covered", "in part", "not covered"]


@dataclass(frozen=True, slots=True)
class AnnexPoint:
    """A point of Annex IV."""

    number: str
    asks_for: str
    sections: tuple[str, ...] = ()
    """Titles of the card's sections that say something about it."""
    stated: tuple[str, ...] = ()
    """What the owner must have stated for it."""
    open: str = ""
    """What this card never says about it."""

    def coverage(self, stated: Collection[str]) -> Coverage:
        """Say how far a card covers it whose owner has stated these."""
        only_stated = bool(self.stated) and self.sections == _OWNERS_SECTION
        if not self.sections or (only_stated and not set(self.stated) & set(stated)):
            return "not covered"
        return "in part" if self.missing(stated) else "covered"

    def missing(self, stated: Collection[str]) -> str:
        """Say what a card lacks about it."""
        unstated = [FIELDS[name].lower() for name in self.stated if name not in stated]
        return "; ".join([*([self.open] if self.open else []), *unstated])


POINTS: tuple[AnnexPoint, ...] = (
    AnnexPoint("1 (a)", "intended purpose, provider, version and earlier versions",
               ("The model", "Intended use"), ("intended_use", "provider")),
    AnnexPoint("1 (b)", "interaction with other hardware or software", open="the system around the model"),
    AnnexPoint("1 (c)", "versions of software", ("Versions",), open="firmware, and rules on updates"),
    AnnexPoint("1 (d)", "forms in which it is placed on the market", open="packages, downloads, interfaces"),
    AnnexPoint("1 (e)", "hardware that it is meant to run on", open="hardware of production"),
    AnnexPoint("1 (f) to (h)", "product photographs, user interface, instructions for use",
               open="the product around the model"),
    AnnexPoint("2 (a)", "methods and steps of development, pre-trained systems", ("How it was made",)),
    AnnexPoint("2 (b)", "design: logic, key choices, what it is optimised for",
               ("How it was made", "Explanations"), open="rationale, trade-offs"),
    AnnexPoint("2 (c)", "architecture, computing resources", ("The model", "How it was made"),
               open="architecture of the system around the model"),
    AnnexPoint("2 (d)", "data: provenance, scope, selection, labelling, cleaning", ("Data",),
               ("data_provenance", "labelling")),
    AnnexPoint("2 (e)", "human oversight, and what helps to interpret outputs",
               ("Explanations", "Intended use"), ("human_oversight",)),
    AnnexPoint("2 (f)", "changes determined beforehand", ("Intended use",), ("changes",)),
    AnnexPoint("2 (g)", "validation, accuracy, robustness, discriminatory impact, signed test logs",
               ("How well it does", "The gate"), open="robustness to attack, impact on groups of people"),
    AnnexPoint("2 (h)", "cybersecurity", ("Intended use",), ("cybersecurity",)),
    AnnexPoint("3", "capabilities, limits, accuracy, unintended outcomes, input data",
               ("How well it does", "Limits and known shortcuts"), ("limitations",),
               open="accuracy for groups of people"),
    AnnexPoint("4", "why the metrics are appropriate", ("How well it does",), open="reasons for the metrics"),
    AnnexPoint("5", "risk management system (Article 9)", ("Intended use",), ("risks",),
               open="the system itself"),
    AnnexPoint("6", "changes through the life cycle", ("The gate", "In production"),
               open="changes outside this registry"),
    AnnexPoint("7", "harmonised standards applied", ("Intended use",), ("standards",)),
    AnnexPoint("8", "EU declaration of conformity", open="the declaration"),
    AnnexPoint("9", "post-market monitoring plan (Article 72)", ("In production",), ("monitoring",),
               open="the plan itself"),
)  # fmt: skip
