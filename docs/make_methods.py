"""Make docs/methods.md and its pictures again: `make docs`.

One photograph (Caltech-101, CC BY 4.0, kept in docs/pictures) and the embedded network with its ImageNet
classes: nothing is trained or fetched.
"""

from __future__ import annotations

from pathlib import Path

import PIL.Image
from jinja2 import Environment

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
    environment = Environment(trim_blocks=True, keep_trailing_newline=True, autoescape=False)
    template = environment.from_string((HERE / "methods.md.j2").read_text())
    return template.render(rows=METHODS.values(), said=filter(None, said), label=CLASS, other=OTHER)


def save(picture: PIL.Image.Image, name: str) -> None:
    """As a JPEG that a page loads quickly."""
    picture.convert("RGB").save(HERE / "pictures" / f"{name}.jpg", quality=84, optimize=True)


if __name__ == "__main__":
    main()
