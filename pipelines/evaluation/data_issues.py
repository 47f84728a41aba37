"""What is odd about a data set, by its pictures: labels that may be wrong, near duplicates across splits."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.devices import to_host
from models.networks.transfer_model import TransferModel
from models.progress import Progress, no_progress
from pipelines.data.dataset import Dataset, Sample
from pipelines.data.listing import SPLITS
from pipelines.evaluation.classification import embed_samples
from pipelines.evaluation.label_errors import LabelError, find_label_errors, too_few_to_judge
from pipelines.evaluation.near_duplicates import NearDuplicate, find_near_duplicates

DATA_ISSUES_FILE = "data_issues.json"
MOST_INSPECTED = 20_000
"""Pictures of a split; of more those whose digests come first."""

Embed = Callable[[str, Sequence[int]], np.ndarray]
"""Returns the features (N, D) of a split's samples at these places."""


@dataclass(frozen=True)
class DataIssues:
    """All that was found, for a person to look at."""

    label_errors: list[LabelError]
    near_duplicates: list[NearDuplicate]
    inspected: int
    """Pictures that were looked at."""
    too_few: list[int]
    """Classes with too few pictures to judge their labels."""

    def to_json(self, data: Dataset) -> str:
        """Return it with the names of files and classes, and the digest of the data set."""

        def names(labels: Sequence[int]) -> list[str]:
            return [data.classes[label] for label in labels]

        content = {
            "dataset digest": data.digest,
            "inspected": self.inspected,
            "classes with too few pictures": names(self.too_few),
            "label_errors": [
                {
                    "name": error.sample.name,
                    "labels": names(error.labels),
                    "suggested": names(error.suggested),
                    "score": round(error.score, 6),
                }
                for error in self.label_errors
            ],
            "near_duplicates": [
                {
                    "trained": pair.trained.name,
                    "held_out": pair.held_out.name,
                    "bits": pair.bits,
                    "cosine": round(pair.cosine, 4),
                }
                for pair in self.near_duplicates
            ],
        }
        return json.dumps(content, indent=2, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str | None, data: Dataset) -> DataIssues | None:
        """Read what :meth:`to_json` wrote of these data; None where there is nothing or it is of others."""
        if text is None:
            return None
        content: dict[str, Any] = json.loads(text)
        if content["dataset digest"] != data.digest:
            return None
        by_name = {sample.name: sample for split in SPLITS for sample in data.samples(split)}
        places = {name: n for n, name in enumerate(data.classes)}

        def labels(names: Sequence[str]) -> tuple[int, ...]:
            return tuple(sorted(places[name] for name in names))

        return cls(
            [
                LabelError(
                    by_name[row["name"]], labels(row["labels"]), labels(row["suggested"]), row["score"]
                )
                for row in content["label_errors"]
            ],
            [
                NearDuplicate(by_name[row["trained"]], by_name[row["held_out"]], row["bits"], row["cosine"])
                for row in content["near_duplicates"]
            ],
            content["inspected"],
            list(labels(content["classes with too few pictures"])),
        )


def embed_by(model: TransferModel, data: Dataset, progress: Progress = no_progress) -> Embed:
    """Return what embeds a data set's samples by a model's own features."""

    def embed(split: str, places: Sequence[int]) -> np.ndarray:
        samples = data.samples(split)
        vectors = embed_samples(model, [samples[place] for place in places], progress=progress)
        return to_host(vectors).numpy()

    return embed


def inspect_data(data: Dataset, embed: Embed, *, progress: Progress = no_progress) -> DataIssues:
    """Look for labels that may be wrong and for near duplicates between the training and the other splits.

    Labels are judged best by features that they have not shaped: a pretrained network's.
    """
    samples: dict[str, list[Sample]] = {}
    vectors: dict[str, np.ndarray] = {}
    for split in SPLITS:
        of_split = data.samples(split)
        places = sorted(range(len(of_split)), key=lambda n: of_split[n].sha256)[:MOST_INSPECTED]
        if places:
            samples[split] = [of_split[place] for place in places]
            vectors[split] = embed(split, places)
    everything = [sample for part in samples.values() for sample in part]
    held_out = [split for split in samples if split != "train"]
    return DataIssues(
        find_label_errors(
            everything,
            np.concatenate(list(vectors.values())),
            classes=len(data.classes),
            several=data.task == "multilabel",
        ),
        find_near_duplicates(
            samples["train"],
            [sample for split in held_out for sample in samples[split]],
            vectors["train"],
            np.concatenate([vectors[split] for split in held_out]),
            progress=progress,
        ),
        len(everything),
        too_few_to_judge(everything, classes=len(data.classes)),
    )
