"""Make docs/methods.md and its pictures again: `make docs`.

One photograph (Caltech-101, CC BY 4.0, kept in docs/pictures) and the embedded network with its ImageNet
classes: nothing is trained or fetched.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import PIL.Image
from jinja2 import Environment

from models.attribution.allowed import methods_for_others, usable_methods
from models.attribution.forward import run_forward
from models.attribution.registry import METHODS, Method, attribute_each
from models.attribution.result import make_attribution
from models.attribution.targets import make_target
from models.backends.registry import create_backend
from models.images.decode import read_image
from models.introspection.decomposition import decompose
from models.introspection.feature_visualization import synthesize_templates
from models.introspection.gradcam_trace import trace_grad_cam
from models.metrics.audit import run_audit
from models.metrics.layer_sweep import forward_for
from models.networks.summary import summarize_network
from models.networks.transfer_model import TransferModel
from models.visualization.architecture import draw_architecture
from models.visualization.contact_sheet import Tile, draw_contact_sheet
from models.visualization.figures import (
    draw_decomposition_figure,
    draw_methods_figure,
    draw_sweep_figure,
    draw_trace_figure,
)
from models.visualization.overlay import draw_overlay

HERE = Path(__file__).parent
PHOTOGRAPH = HERE / "pictures/photograph.jpg"
CLASS, OTHER = "flamingo", "crane"
CHANNELS = (("stage3.1", (11, 20)), ("stage4.2", (3, 50)), ("stage5.2", (17, 40)), ("top", (200, 640)))


def main() -> None:
    """Write the page and its pictures."""
    model = TransferModel.imagenet("efficientnet_lite0").requires_grad_(False)
    image = read_image(PHOTOGRAPH)
    x, frame = model.geometry.prepare(image)
    backend = create_backend("eager", model, probe=x[None])
    forward = run_forward(backend.model, x[None], backend=backend)
    goal = make_target(model.classes, model.classes.index(CLASS))
    contrast = make_target(model.classes, goal.index, model.classes.index(OTHER))
    maps = [
        attribute_each(forward_for(METHODS[name], forward), [goal], method=name)[0]
        for name in usable_methods(model)
    ]
    maps.append(attribute_each(forward, [contrast])[0])
    titles = [METHODS[name].title for name in usable_methods(model)] + [f"Grad-CAM, {contrast.name}"]
    found = run_audit(image, forward, maps[0], disabled=methods_for_others(model))
    parts = decompose(backend.model, x, goal, "stage6.3", backend=backend)
    split_maps = [
        make_attribution(goal, part.values, method="grad_cam", block=parts.block) for part in parts.parts
    ]
    save(draw_methods_figure(image, frame, maps, titles=titles), "methods")
    save(draw_trace_figure(image, frame, trace_grad_cam(forward, 0, goal, channels=2)), "trace")
    save(draw_sweep_figure(image, frame, found.sweep or ()), "sweep")
    save(draw_decomposition_figure(image, frame, parts, split_maps), "split")
    save(draw_architecture(summarize_network(model)), "flow")
    save(filters(backend.model), "filters")
    save(draw_overlay(image, frame, maps[0]), "overlay")
    verdicts = [
        found.faithfulness.verdict if found.faithfulness else "",
        found.agreement.verdict if found.agreement else "",
        found.shifts.verdict if found.shifts else "",
    ]
    (HERE / "methods.md").write_text(page(verdicts))


def filters(model: TransferModel) -> PIL.Image.Image:
    """Return what some channels of four blocks look for."""
    tiles = []
    for block, channels in CHANNELS:
        for found in synthesize_templates(model, block, channels):
            tiles.append(Tile(PIL.Image.fromarray(found.image), f"{block} #{found.channel}"))
    return draw_contact_sheet(tiles, columns=4, side=200)


def page(verdicts: list[str]) -> str:
    """Return the page in Markdown; the table of methods is the product's own."""
    environment = Environment(trim_blocks=True, keep_trailing_newline=True, autoescape=False)
    template = environment.from_string((HERE / "methods.md.j2").read_text())
    return template.render(
        rows=METHODS.values(),
        parameters={name: describe_parameters(method) for name, method in METHODS.items()},
        verdicts=filter(None, verdicts),
        label=CLASS,
        other=OTHER,
    )


def describe_parameters(method: Method) -> str:
    """Return the parameters of a method with defaults and ranges, in Markdown."""
    defaults, ranges = asdict(method.parameters()), method.parameters.RANGES
    texts = [f"`{name}` {defaults[name]} ({low:,} to {high:,})" for name, (low, high) in ranges.items()]
    return ", ".join(texts) or "none"


def save(picture: PIL.Image.Image, name: str) -> None:
    """Save a picture as a JPEG that a page loads quickly."""
    picture.convert("RGB").save(HERE / "pictures" / f"{name}.jpg", quality=84, optimize=True)


if __name__ == "__main__":
    main()
