"""Concepts of a block: directions of its features along which a model's evidence runs, as files beside a
bundle.

A cell's features are the mean over a set of pictures, plus each concept's direction as often as the cell has
it (its code, 0 or more), plus a rest. Codes are found by least squares (semi-NMF, Ding et al. 2010, as CRAFT
of Fel et al. 2023 uses NMF), or by a sparse autoencoder that keeps the largest few (Gao et al. 2024).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors, save as save_tensors
from torch import Tensor

from models.atomic_write import atomic_write
from models.devices import to_host
from models.errors import BundleError, UnknownChoice
from models.strict_files import parse_json, read_file

CONCEPTS_FILE, CONCEPTS_TENSORS = "concepts.json", "concepts.safetensors"
FACTORIZATION, AUTOENCODER = "factorization", "sparse_autoencoder"
CONCEPT_METHODS = (FACTORIZATION, AUTOENCODER)
MOST_CONCEPTS = 64
_MOST_CHANNELS = 16_384
_MOST_BYTES = 64_000_000
_LONGEST_NAME = 80
_SWEEPS = 30
"""Of coordinate descent; a dozen directions need fewer."""


@dataclass(frozen=True)
class ConceptSet:
    """The concepts of one block of one bundle."""

    block: str
    method: str
    digest: str
    """Of the bundle whose features they are of."""
    mean: Tensor = field(repr=False)
    """(C,) features of the mean cell."""
    directions: Tensor = field(repr=False)
    """(k, C) features of a cell with a code of 1, above the mean."""
    encoder: Tensor = field(repr=False)
    """(k, C) by which features above the mean are multiplied first."""
    gram: Tensor | None = field(repr=False)
    """(k, k) products of the directions in the space that they were fitted in; None for an autoencoder."""
    bias: Tensor | None = field(repr=False)
    """(k,) of the autoencoder."""
    active: int
    """Codes of a cell that the autoencoder keeps."""
    levels: Tensor = field(repr=False)
    """(k,) code from which on a cell counts as having the concept."""
    names: tuple[str, ...]
    """What people call them; "" for one without a name."""
    entries: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)
    """What `lucida concepts` measured of each, with its patches."""
    summary: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """What it measured of all, and of what."""

    def __len__(self) -> int:
        """Return the number of concepts."""
        return len(self.names)

    def title(self, number: int) -> str:
        """Return a concept's name, or its number where it has none."""
        return self.names[number] or f"concept {number}"

    def encode(self, features: Tensor) -> Tensor:
        """Return the codes (N, k, rows, cols) of a block's map (N, C, rows, cols), float64 on the host."""
        count, channels, rows, cols = features.shape
        if channels != len(self.mean):
            raise BundleError(f"The concepts are of {len(self.mean)} channels; the block has {channels}.")
        cells = to_host(features).double().permute(0, 2, 3, 1).reshape(-1, channels) - self.mean
        codes = self._codes(cells @ self.encoder.T)
        return codes.view(count, rows, cols, len(self)).permute(0, 3, 1, 2)

    def _codes(self, products: Tensor) -> Tensor:
        if self.gram is not None:
            return solve_codes(products, self.gram)
        assert self.bias is not None
        return keep_largest((products + self.bias).clamp(min=0), self.active)

    def renamed(self, number: int, name: str) -> ConceptSet:
        """Return the set with a name for one concept; raises UnknownChoice."""
        if not 0 <= number < len(self):
            raise UnknownChoice("concept", number, (f"0 to {len(self) - 1}",))
        if not name.isprintable() or len(name) > _LONGEST_NAME:
            rule = f"a line of at most {_LONGEST_NAME} characters"
            raise UnknownChoice("name", name[: _LONGEST_NAME + 1], (rule,))
        names = (*self.names[:number], name.strip(), *self.names[number + 1 :])
        return replace(self, names=names)


def check_method(method: str) -> str:
    """Return the name of a way to find concepts; raises UnknownChoice."""
    if method not in CONCEPT_METHODS:
        raise UnknownChoice("method", method, CONCEPT_METHODS)
    return method


def solve_codes(products: Tensor, gram: Tensor) -> Tensor:
    """Return the codes (n, k), 0 or more, of least squares for products (n, k) with directions whose own
    products are ``gram`` (k, k), by coordinate descent.
    """
    codes = torch.zeros_like(products)
    for _ in range(_SWEEPS):
        for k in range(len(gram)):
            step = (products[:, k] - codes @ gram[:, k]) / gram[k, k].clamp(min=1e-12)
            codes[:, k] = (codes[:, k] + step).clamp(min=0)
    return codes


def keep_largest(codes: Tensor, count: int) -> Tensor:
    """Return codes (n, k) with all but each row's largest few set to 0."""
    largest = codes.topk(min(count, codes.shape[1]), dim=1)
    return torch.zeros_like(codes).scatter(1, largest.indices, largest.values)


def write_concepts(concepts: ConceptSet, folder: Path) -> None:
    """Write the set into a folder, over one that is there."""
    tensors = {
        name: value.double().clone(memory_format=torch.contiguous_format)
        for name in ("mean", "directions", "encoder", "gram", "bias", "levels")
        if (value := getattr(concepts, name)) is not None
    }
    data = save_tensors(tensors)
    about = {
        "tensors": hashlib.sha256(data).hexdigest(),
        "block": concepts.block, "method": concepts.method, "digest": concepts.digest,
        "active": concepts.active, "names": list(concepts.names), "concepts": list(concepts.entries),
        "summary": dict(concepts.summary),
    }  # fmt: skip
    text = json.dumps(about, indent=1, ensure_ascii=False, allow_nan=False)
    atomic_write(folder / CONCEPTS_TENSORS, data)
    atomic_write(folder / CONCEPTS_FILE, text.encode())


def read_concepts(folder: Path, digest: str | None = None) -> ConceptSet | None:
    """Return the concepts in a folder, None where there are none.

    Raises BundleError for files that are damaged, or of another bundle than that of ``digest``.
    """
    if not (folder / CONCEPTS_FILE).exists():
        return None
    about = parse_json(read_file(folder / CONCEPTS_FILE, most=_MOST_BYTES), CONCEPTS_FILE)
    data = read_file(folder / CONCEPTS_TENSORS, most=_MOST_BYTES)
    try:
        if about["tensors"] != hashlib.sha256(data).hexdigest():
            raise ValueError(f"{CONCEPTS_TENSORS} belongs to other concepts")
        concepts = _parse(about, load_tensors(data))
    except (SafetensorError, AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise BundleError(f"The {CONCEPTS_FILE} in {folder.name} cannot be read: {error!r}.") from error
    if digest is not None and concepts.digest != digest:
        raise BundleError(
            f"The concepts in {folder.name} are of the bundle {concepts.digest[:12]}, not of {digest[:12]}."
        )
    return concepts


def _parse(about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> ConceptSet:
    names, entries = _texts(about["names"]), tuple(map(_check_entry, about["concepts"]))
    count, channels = len(names), len(tensors["mean"])
    own = {"gram": (count, count)} if about["method"] == FACTORIZATION else {"bias": (count,)}
    shapes: dict[str, tuple[int, ...]] = {
        "mean": (channels,), "directions": (count, channels), "encoder": (count, channels),
        "levels": (count,), **own,
    }  # fmt: skip
    if about["method"] not in CONCEPT_METHODS or not 1 <= count <= MOST_CONCEPTS or channels > _MOST_CHANNELS:
        raise ValueError(f"{about['method']!r} with {count} concepts of {channels} channels")
    if {name: tuple(value.shape) for name, value in tensors.items()} != shapes or len(entries) != count:
        raise ValueError("the shapes of the tensors")
    if not all(bool(torch.isfinite(value).all()) for value in tensors.values()):
        raise ValueError("a value that is not finite")
    if "gram" in tensors and bool((tensors["gram"].diagonal() <= 0).any()):
        raise ValueError("a direction without length")
    if not bool((tensors["levels"] > 0).all()) or not _is_count(about["active"]) or about["active"] > count:
        raise ValueError("a level, or the number of active codes")
    if not isinstance(about["block"], str):
        raise ValueError("the block")
    summary = _check_summary(about["summary"], count)
    tensors = {name: value.double() for name, value in tensors.items()}
    return ConceptSet(
        block=about["block"], method=about["method"], digest=str(about["digest"]),
        mean=tensors["mean"], directions=tensors["directions"],
        encoder=tensors["encoder"], gram=tensors.get("gram"), bias=tensors.get("bias"),
        active=about["active"], levels=tensors["levels"], names=names, entries=entries,
        summary=summary,
    )  # fmt: skip


def _check_entry(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what was measured of a concept; raises KeyError, TypeError or ValueError for anything else."""
    if not all(_is_count(entry[name]) for name in ("present", "flips")):
        raise ValueError("a count of a concept")
    numbers = [entry[name] for name in ("share", "loss")]
    numbers += [*entry["by_class"].values(), *(patch["strength"] for patch in entry["patches"])]
    images = [patch[name] for patch in entry["patches"] for name in ("crop", "where")]
    texts = [patch[name] for patch in entry["patches"] for name in ("picture", "label")]
    if not all(isinstance(value, int | float) for value in numbers):
        raise ValueError("a figure of a concept")
    if not all(isinstance(value, str) for value in (*images, *texts)):
        raise ValueError("a patch of a concept")
    if not all(value.startswith("data:image/") for value in images):
        raise ValueError("a patch that is no image of its own")
    return dict(entry)


def _check_summary(summary: Mapping[str, Any], count: int) -> Mapping[str, Any]:
    """Return what was measured of so many concepts; raises as :func:`_check_entry` does."""
    if not all(_is_count(summary[name]) for name in ("fitted", "measured")):
        raise ValueError("how many pictures there were")
    if not all(isinstance(summary[name], int | float) for name in ("residual", "described")):
        raise ValueError("a figure of the concepts")
    if not all(isinstance(text, str) for item in summary["facts"].items() for text in item):
        raise ValueError("where they come from")
    for part in summary["parts"]:
        counts, texts = (part["number"], part["images"], part["matched"]), (part["part"], part["label"])
        proper = all(map(_is_count, counts)) and all(isinstance(text, str) for text in texts)
        if not proper or part["number"] >= count or not isinstance(part["mean_iou"], int | float):
            raise ValueError("a part")
    return dict(summary)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _texts(values: Sequence[Any]) -> tuple[str, ...]:
    if not all(isinstance(value, str) and len(value) <= _LONGEST_NAME for value in values):
        raise ValueError("a name")
    return tuple(values)
