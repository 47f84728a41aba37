"""The filter atlas: what channels of a block look for, beside what they answer most in a data set.

A synthesised template says what would drive a channel most; the patches say what does, among real images.
Where the two tell the same story a channel can be named; where they do not, that is worth knowing too.
Channels that never answer, and channels that answer as another one does, are named.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from models.devices import to_host
from models.errors import UnknownChoice
from models.images.decode import read_image
from models.images.encode import to_data_uri
from models.images.frame import Frame
from models.introspection.feature_visualization import FilterTemplate, synthesize_templates
from models.networks.receptive_field import ReceptiveField
from models.networks.summary import summarize_network
from models.networks.transfer_model import TransferModel
from models.progress import Progress, no_progress
from models.visualization.contact_sheet import Tile, draw_contact_sheet
from pipelines.data.dataset import Dataset, Sample
from pipelines.reports.html import render_template

_BATCH = 16
_MOST_IMAGES = 600
_MOST_POSITIONS = 20_000
_ALIKE = 0.98
_WIDEST = 0.4
"""Of the shorter side of what the model saw: the theoretical field of a deep cell is wider than the image,
what it really heeds is a part in its middle (Luo et al. 2016)."""
_PATCH_SIDE = 132


@dataclass(frozen=True, slots=True)
class AtlasPatch:
    """The patch of one image where a channel responds most."""

    sample: Sample
    label: str
    value: float
    box: tuple[int, int, int, int]
    """x0, y0, x1, y1 in pixels of the upright image."""
    image: PIL.Image.Image = field(repr=False)


@dataclass(frozen=True, slots=True)
class AtlasEntry:
    """A channel of the atlas."""

    channel: int
    template: FilterTemplate
    patches: tuple[AtlasPatch, ...]
    share_active: float
    """Of all positions of all images, where its value is above 0."""
    twins: tuple[int, ...]
    """Channels that answer alike: correlation of 0.98 or more over the positions."""


@dataclass(frozen=True, slots=True)
class FilterAtlas:
    """Some channels of one block."""

    block: str
    channels: int
    """Of the block."""
    pictures: int
    entries: tuple[AtlasEntry, ...]
    dead: tuple[int, ...]
    """Channels that are 0 or below at every position of every image."""
    duplicates: tuple[tuple[int, int, float], ...]
    """(channel, later channel, correlation) of all pairs that answer alike."""


def build_atlas(
    model: TransferModel,
    data: Dataset,
    block: str,
    *,
    channels: Sequence[int] | None = None,
    count: int = 12,
    patches: int = 6,
    steps: int = 160,
    progress: Progress = no_progress,
) -> FilterAtlas:
    """Make the atlas of a block over the training images (at most 600, by their digests).

    Without ``channels`` the ``count`` that vary most over the images are taken. Raises UnknownChoice for a
    block or channel that the model does not have.
    """
    model.index_of(block)
    samples = sorted(data.train, key=lambda sample: sample.sha256)[:_MOST_IMAGES]
    answers = _ChannelResponses(model, block, samples, progress)
    for channel in channels or ():
        if not 0 <= channel < answers.count:
            raise UnknownChoice("channel", channel, (f"0 to {answers.count - 1}",))
    chosen = list(channels) if channels else answers.most_varied(count)
    filter_templates = synthesize_templates(model, block, chosen, steps=steps, progress=progress)
    seen = summarize_network(model).block(block).field
    duplicates = answers.duplicates()
    entries = []
    for channel, template in zip(chosen, filter_templates, strict=True):
        channel_patches = [
            _patch(model, data, samples[n], answers, channel, n, seen)
            for n in answers.strongest(channel, patches)
        ]
        twins = [b if a == channel else a for a, b, _ in duplicates if channel in (a, b)]
        entries.append(
            AtlasEntry(channel, template, tuple(channel_patches), answers.share_active(channel), tuple(twins))
        )
    return FilterAtlas(block, answers.count, len(samples), tuple(entries), answers.dead(), duplicates)


class _ChannelResponses:
    """Responses of every channel of a block over a set of images."""

    def __init__(
        self, model: TransferModel, block: str, samples: Sequence[Sample], progress: Progress
    ) -> None:
        maxima, places, active, sampled = [], [], [], []
        room = max(1, _MOST_POSITIONS // max(len(samples), 1))
        generator = torch.Generator().manual_seed(0)
        self.cols = 1
        for start in range(0, len(samples), _BATCH):
            part = samples[start : start + _BATCH]
            x = model.geometry.prepare_files(sample.path for sample in part)
            with torch.no_grad():
                grid = to_host(model.as_map(block, model.until(block, x)))
            self.cols = grid.shape[3]
            flat = grid.flatten(2)
            largest = flat.max(dim=2)
            maxima.append(largest.values)
            places.append(largest.indices)
            active.append((flat > 0).float().mean(dim=2))
            some = torch.randperm(flat.shape[2], generator=generator)[:room]
            sampled.append(flat[:, :, some].permute(0, 2, 1).reshape(-1, flat.shape[1]))
            progress("what the channels answer", start + len(part), len(samples))
        self.maxima, self.places, self.active = torch.cat(maxima), torch.cat(places), torch.cat(active)
        self._sampled = torch.cat(sampled)
        self.count = self.maxima.shape[1]

    def most_varied(self, count: int) -> list[int]:
        """Return channels whose largest answers differ most from image to image, in their own spread."""
        spread = self.maxima.std(dim=0) / self.maxima.mean(dim=0).abs().clamp(min=1e-6)
        spread[self.maxima.amax(dim=0) <= 0] = -1.0
        return sorted(spread.argsort(descending=True, stable=True)[:count].tolist())

    def strongest(self, channel: int, count: int) -> list[int]:
        """Return the numbers of the images in which a channel answers most."""
        return self.maxima[:, channel].argsort(descending=True, stable=True)[:count].tolist()

    def place(self, channel: int, n: int) -> tuple[int, int]:
        """Return (row, col) of its strongest answer in an image."""
        row, col = divmod(int(self.places[n, channel]), self.cols)
        return row, col

    def share_active(self, channel: int) -> float:
        """Return the share of all positions at which a channel is above zero."""
        return float(self.active[:, channel].mean())

    def dead(self) -> tuple[int, ...]:
        """Return channels that never answer."""
        return tuple(torch.nonzero(self.maxima.amax(dim=0) <= 0).flatten().tolist())

    def duplicates(self) -> tuple[tuple[int, int, float], ...]:
        """Return pairs whose values go together at all positions looked at."""
        centred = self._sampled - self._sampled.mean(dim=0)
        length = centred.norm(dim=0)
        alive = length > 1e-6
        unit: Tensor = torch.where(alive, centred / length.clamp(min=1e-6), torch.zeros_like(centred))
        together = torch.triu(unit.T @ unit, diagonal=1)
        pairs = torch.nonzero(together >= _ALIKE).tolist()
        return tuple((a, b, float(together[a, b])) for a, b in pairs)


def _patch(
    model: TransferModel,
    data: Dataset,
    sample: Sample,
    answers: _ChannelResponses,
    channel: int,
    n: int,
    seen: ReceptiveField,
) -> AtlasPatch:
    image = read_image(sample.path)
    frame = model.geometry.frame(image.width, image.height)
    box = _box(frame, seen, *answers.place(channel, n))
    label = " + ".join(data.classes[class_number] for class_number in sample.labels) or "none"
    return AtlasPatch(sample, label, float(answers.maxima[n, channel]), box, image.pil.crop(box))


def _box(frame: Frame, seen: ReceptiveField, row: int, col: int) -> tuple[int, int, int, int]:
    """Return the middle of a cell's receptive field on the image, clipped to it."""
    x0, y0, x1, y1 = frame.to_image(seen.box(row, col))
    left, top, right, bottom = frame.seen_box
    widest = _WIDEST * min(right - left, bottom - top)
    side = max(8.0, min(x1 - x0, y1 - y0, widest))
    across = min(max((x0 + x1) / 2, left + side / 2), right - side / 2)
    down = min(max((y0 + y1) / 2, top + side / 2), bottom - side / 2)
    corners = (across - side / 2, down - side / 2, across + side / 2, down + side / 2)
    box = [round(corner) for corner in corners]
    return (
        max(0, box[0]),
        max(0, box[1]),
        min(frame.width, max(box[2], box[0] + 1)),
        min(frame.height, max(box[3], box[1] + 1)),
    )


def draw_atlas_figure(atlas: FilterAtlas) -> PIL.Image.Image:
    """Draw a row for each channel: its template, then the patches."""
    tiles = []
    widest = max(len(entry.patches) for entry in atlas.entries)
    for entry in atlas.entries:
        tiles.append(
            Tile(
                PIL.Image.fromarray(entry.template.image),
                f"#{entry.channel} looks for",
                f"active on {entry.share_active:.0%}",
            )
        )
        tiles += [Tile(patch.image, patch.label, f"{patch.value:.3g}") for patch in entry.patches]
        tiles += [Tile(PIL.Image.new("RGB", (1, 1), (250, 249, 246)))] * (widest - len(entry.patches))
    title = f"{atlas.block}: what {len(atlas.entries)} of {atlas.channels} channels look for, and find"
    return draw_contact_sheet(tiles, columns=1 + widest, side=_PATCH_SIDE, title=title)


def render_atlas(atlas: FilterAtlas, facts: dict[str, str]) -> str:
    """Render one HTML file that stands alone."""
    rows = [
        {
            "channel": entry.channel,
            "template": to_data_uri(PIL.Image.fromarray(entry.template.image)),
            "active": entry.share_active,
            "twins": entry.twins,
            "response": entry.template.response,
            "patches": [
                {
                    "picture": to_data_uri(_small(patch.image)),
                    "where": to_data_uri(_located(patch)),
                    "label": patch.label,
                    "name": patch.sample.name,
                    "box": patch.box,
                    "value": patch.value,
                }
                for patch in entry.patches
            ],
        }
        for entry in atlas.entries
    ]
    title = f"Filter atlas of {atlas.block}"
    return render_template("atlas.html.j2", title=title, atlas=atlas, rows=rows, facts=facts)


def atlas_to_json(atlas: FilterAtlas) -> dict[str, object]:
    """Return the findings, with templates and patches as small images."""
    return {
        "block": atlas.block,
        "channels": atlas.channels,
        "pictures": atlas.pictures,
        "dead": list(atlas.dead),
        "duplicates": [list(pair) for pair in atlas.duplicates],
        "entries": [
            {
                "channel": entry.channel,
                "share_active": entry.share_active,
                "twins": list(entry.twins),
                "template": {
                    "response": entry.template.response,
                    "start": entry.template.start,
                    "steps": entry.template.steps,
                    "picture": to_data_uri(PIL.Image.fromarray(entry.template.image)),
                },
                "patches": [
                    {
                        "picture": patch.sample.name,
                        "box": list(patch.box),
                        "value": patch.value,
                        "crop": to_data_uri(_small(patch.image)),
                    }
                    for patch in entry.patches
                ],
            }
            for entry in atlas.entries
        ],
    }


def _small(image: PIL.Image.Image) -> PIL.Image.Image:
    return image.convert("RGB").resize((_PATCH_SIDE, _PATCH_SIDE), PIL.Image.Resampling.LANCZOS)


def _located(patch: AtlasPatch) -> PIL.Image.Image:
    """Draw the source image, small, dimmed but for the patch."""
    source = read_image(patch.sample.path).pil
    pixels = np.asarray(source).astype(np.float32) * 0.35 + 40
    x0, y0, x1, y1 = patch.box
    pixels[y0:y1, x0:x1] = np.asarray(source)[y0:y1, x0:x1]
    dimmed = PIL.Image.fromarray(pixels.astype(np.uint8))
    dimmed.thumbnail((_PATCH_SIDE, _PATCH_SIDE))
    return dimmed
