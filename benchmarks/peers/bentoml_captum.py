"""A BentoML service with Captum as one writes it from the two tutorials; BentoML's defaults.

``bentoml serve bentoml_captum:Explained``: POST /explain with the field ``image``.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Annotated

import bentoml
import numpy as np
import torch
import torchvision
from bentoml.validators import ContentType
from captum.attr import LayerAttribution, LayerGradCam
from matplotlib import colormaps
from PIL import Image
from starlette.responses import Response
from torchvision.transforms import v2


@bentoml.service
class Explained:
    """Predict and explain one picture."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = torchvision.models.resnet18().eval()
        self.cam = LayerGradCam(self.model, self.model.layer4)
        self.look = v2.Compose([v2.Resize(256), v2.CenterCrop(224)])
        self.tensor = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True),
                                  v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])])  # fmt: skip

    @bentoml.api
    def explain(self, image: Path) -> Annotated[Path, ContentType("image/png")]:
        """Return the overlay as a PNG."""
        seen = self.look(Image.open(image).convert("RGB"))
        x = self.tensor(seen)[None]
        target = int(self.model(x).argmax())
        grid = LayerAttribution.interpolate(self.cam.attribute(x, target), (224, 224), "bilinear")
        laid = grid[0, 0].clamp(min=0).detach().numpy()
        coloured = colormaps["jet"](laid / max(float(laid.max()), 1e-9))[..., :3]
        drawn = 0.5 * np.asarray(seen) / 255 + 0.5 * coloured
        buffer = io.BytesIO()
        Image.fromarray((drawn * 255).astype(np.uint8)).save(buffer, "PNG")
        return Response(buffer.getvalue(), media_type="image/png")  # type: ignore[return-value]
