"""Make docs/methods.md and its pictures again: `make docs`.

One photograph (Caltech-101, CC BY 4.0, kept in docs/pictures) and the embedded network with its ImageNet
classes: nothing is trained or fetched.
"""

from __future__ import annotations

from pathlib import Path

import PIL.Image

from models import engines, images
from models.anatomy import anatomy
from models.explain.attribution import attribution
from models.explain.audit import audit
from models.explain.evidence_split import split
from models.explain.filters import templates
from models.explain.look import look
from models.explain.methods import METHODS, explain_each
from models.explain.targets import target
from models.explain.trace import trace
from models.render.contact_sheet import Tile, contact_sheet
from models.render.flow import flow
from models.render.overlay import overlay
from models.render.sheets import methods_sheet, split_sheet, sweep_sheet, trace_sheet
from models.transfer import TransferModel

HERE = Path(__file__).parent
PHOTOGRAPH = HERE / "pictures/photograph.jpg"
CLASS, OTHER = "flamingo", "crane"
CHANNELS = (("stage3.1", (11, 20)), ("stage4.2", (3, 50)), ("stage5.2", (17, 40)), ("top", (200, 640)))


def main() -> None:
    """Write the page and its pictures."""
    model = TransferModel.imagenet("efficientnet_lite0").requires_grad_(False)
    image = images.read(PHOTOGRAPH)
    x, frame = model.geometry.prepare(image)
    engine = engines.prepare("eager", model, probe=x[None])
    evidence = look(engine.model, x[None], engine=engine)
    goal = target(model.classes, model.classes.index(CLASS))
    contrast = target(model.classes, goal.index, model.classes.index(OTHER))
    maps = [explain_each(evidence, [goal], method=name)[0] for name in METHODS]
    maps.append(explain_each(evidence, [contrast])[0])
    titles = [row.title for row in METHODS.values()] + [f"Grad-CAM, {contrast.name}"]
    found = audit(image, evidence, maps[0], barred={})
    parts = split(engine.model, x, goal, "stage6.3", engine=engine)
    split_maps = [
        attribution(goal, part.values, method="grad_cam", block=parts.block) for part in parts.parts
    ]
    save(methods_sheet(image, frame, maps, titles=titles), "methods")
    save(trace_sheet(image, frame, trace(evidence, 0, goal, channels=2)), "trace")
    save(sweep_sheet(image, frame, found.sweep or ()), "sweep")
    save(split_sheet(image, frame, parts, split_maps), "split")
    save(flow(anatomy(model)), "flow")
    save(filters(engine.model), "filters")
    save(overlay(image, frame, maps[0]), "overlay")
    said = [
        found.faithfulness.verdict if found.faithfulness else "",
        found.agreement.verdict if found.agreement else "",
        found.shifts.verdict if found.shifts else "",
    ]
    (HERE / "methods.md").write_text(page(said))


def filters(model: TransferModel) -> PIL.Image.Image:
    """What some channels of four blocks look for."""
    tiles = []
    for block, channels in CHANNELS:
        for found in templates(model, block, channels):
            tiles.append(Tile(PIL.Image.fromarray(found.picture), f"{block} #{found.channel}"))
    return contact_sheet(tiles, columns=4, side=200)


def page(said: list[str]) -> str:
    """The page in Markdown; the table of methods is the product's own."""
    rows = "\n".join(
        f"| `{row.name}` | {row.title} | {row.good_for} | {row.misleads} |" for row in METHODS.values()
    )
    verdicts = "\n".join(f"- {each}" for each in said if each)
    return f"""# What each method shows, and where it misleads
*This page is written by `make docs`; change [make_methods.py](make_methods.py) instead.*

One photograph (Caltech-101, Li et al., CC BY 4.0), the embedded network with its ImageNet weights, the class "{CLASS}". Bright means evidence; the hatched border was never seen by the network. Under each map is its raw range: units differ from method to method, so colours can be compared within a map and not between them.

![One photograph by every method](pictures/methods.jpg)

| name | method | good for | where it misleads |
|---|---|---|---|
{rows}

The last picture is a **contrast**: what speaks for {CLASS} rather than {OTHER}, the difference of the two scores. Every method can be asked so (`against`).

## Before you believe a map
A heatmap always looks like a reason. `lucida inspect PICTURE`, `POST /trust` and `models.explain.audit` ask four questions of it. Of the Grad-CAM map above they say:

{verdicts}

- **Faithfulness** covers the picture in the order of the map and watches the score, beside random maps that are as smooth: drawn from the map itself by giving its Fourier transform new phases. A high percentile says that the model reacts to these places. It does not say that a person would, nor that the places are the object.
- **Sanity** shuffles the weights from the head down (Adebayo et al. 2018). A method whose maps stay as they were shows the picture and not the model; it is barred for that model, and asking for it says why. It is checked once for each trained model and kept in its bundle.
- **Shifts** move the crop by a few pixels. Pooling makes networks tolerant of that, not immune.
- **The sweep** explains each stage. A mark smaller than a cell of the last block cannot be pointed at there: look at an earlier one, and at HiResCAM.

![The map at the end of each stage](pictures/sweep.jpg)

Warnings come with every answer: a picture cropped, a score as high as it can be, evidence at the border where the network sees its own padding, a map that is faint beside the predicted class's, a class for which nothing speaks.

## How Grad-CAM comes about
(1) The block answers; (2) the class's logit is derived by each of its values; (3) the mean over the positions weighs each channel, with its sign; (4) the weighted channels are added up, and what is positive is kept; (5) that is laid over the picture. Orange adds to the map, blue takes away.

![Grad-CAM step by step](pictures/trace.jpg)

## Which way the evidence came
A residual block gives x + f(x), an inception block puts its branches side by side: either way the map at the block is the exact sum of its parts (`POST /split`).

![Evidence by skip and branch](pictures/split.jpg)

## What is inside
![Blocks from left to right](pictures/flow.jpg)

`lucida anatomy BACKBONE` and `GET /anatomy` give each block's and layer's shapes, receptive field, parameters and multiply-adds. `lucida atlas BLOCK` charts what channels look for, found by gradient ascent on the picture, beside the patches of a data set that they answer most:

![What channels look for](pictures/filters.jpg)
"""


def save(picture: PIL.Image.Image, name: str) -> None:
    """As a JPEG that a page loads quickly."""
    picture.convert("RGB").save(HERE / "pictures" / f"{name}.jpg", quality=84, optimize=True)


if __name__ == "__main__":
    main()
