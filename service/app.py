"""The BentoML service: the engine's verbs as endpoints.

Types on the endpoints are what BentoML writes into OpenAPI; a picture goes out as a ready Response. The edge
has checked and rebuilt every form before it comes here. Torch and the model are loaded in ``__init__``,
in the worker, not on import.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast
from urllib.parse import quote

import bentoml
from bentoml.models import BentoModel
from bentoml.validators import ContentType
from pydantic import Field
from starlette.responses import Response

from service.edge import Edge
from service.errors import answered
from service.pages import make_pages
from service.schemas import (
    ActivationsAnswer,
    ExplainAnswer,
    PredictAnswer,
    SplitAnswer,
    TraceAnswer,
    TrustAnswer,
    WhatIfAnswer,
)
from service.settings import Settings

if TYPE_CHECKING:
    from bentoml import Service

    from service.doubts import Doubts
    from service.engine import Engine, Request

settings = Settings()
pages = make_pages()

Target = Annotated[str | None, Field(description="Class to explain, by name; the highest score by default.")]
Against = Annotated[str | None, Field(description="A class that it is held against: why this, not that.")]
Block = Annotated[
    str | None, Field(description="Block to explain at; the model's Grad-CAM block by default.")
]
Method = Annotated[
    str | None, Field(description="One of the methods that GET /model names; its default_method by default.")
]
Flip = Annotated[bool, Field(description="Average over the picture and its mirror image.")]
Noise = Annotated[float, Field(description="Average over noisy pictures: deviation, of the picture's range.")]
Picture = Annotated[Path, Field(description="The picture: JPEG, PNG, WebP, GIF, BMP or TIFF.")]
AsPicture = Annotated[bool, Field(description="Answer with a PNG sheet instead of JSON.")]


@bentoml.service(
    name="camera_lucida",
    threads=settings.request_threads,
    traffic={"timeout": 60},
    http={"host": "127.0.0.1", "port": 3000},
)
@bentoml.asgi_app(pages, path="/")
class CameraLucida:
    """Predictions, explanations and doubts about them, and the inside of one fine-tuned classifier."""

    stored = BentoModel("camera-lucida:latest")

    def __init__(self) -> None:
        """Load the bundle, check it, and explain its probe once; the service is ready after that."""
        from service.doubts import Doubts
        from service.engine import Engine, Request

        folder = settings.bundle if settings.bundle is not None else Path(self.stored.path)
        self.engine: Engine = Engine(folder, settings)
        self.doubts: Doubts = Doubts(self.engine)
        self.request: type[Request] = Request
        pages.state.engine = self.engine

    def __is_ready__(self) -> bool:
        """Whether /readyz answers 200."""
        return self.engine.ready

    @bentoml.api
    @answered
    def predict(self, image: Picture) -> PredictAnswer:
        """Scores of all classes, highest first."""
        return self.engine.predict(image.read_bytes())

    @bentoml.api
    @answered
    def explain(
        self,
        image: Picture,
        target: Target = None,
        against: Against = None,
        top_k: int = 1,
        block: Block = None,
        method: Method = None,
        flip: Flip = False,
        noise: Noise = 0.0,
        faithfulness: bool = False,
        overlay: bool = False,
    ) -> ExplainAnswer:
        """The prediction, and evidence for the class asked for or for the top k."""
        asked = self.request(target, against, top_k, block, method, flip, noise, faithfulness, overlay)
        return self.engine.explain(image.read_bytes(), asked)

    @bentoml.api
    @answered
    def heatmap(
        self,
        image: Picture,
        target: Target = None,
        against: Against = None,
        block: Block = None,
        method: Method = None,
        flip: Flip = False,
        noise: Noise = 0.0,
        encoding: Literal["jpeg", "png"] = "jpeg",
    ) -> Annotated[Path, ContentType("image/*")]:
        """The overlay itself, as a picture; its status and label are in headers X-Lucida-Status and
        -Label.
        """
        asked = self.request(target, against, block=block, method=method, flip=flip, noise=noise)
        drawn, shown = self.engine.heatmap(image.read_bytes(), asked, encoding=encoding)
        return _picture(drawn, encoding, status=shown.status, label=shown.target.name)  # type: ignore[return-value]

    @bentoml.api
    @answered
    def trust(
        self,
        image: Picture,
        target: Target = None,
        against: Against = None,
        block: Block = None,
        method: Method = None,
        checks: str = "",
        overlay: bool = False,
        picture: AsPicture = False,
    ) -> TrustAnswer:
        """How far the evidence can be trusted: faithfulness, agreement, shifts and sweep, or the ``checks``
        named with commas between; the sweep alone as a PNG with ``picture`` and no ``checks``.
        """
        asked = self.request(target, against, block=block, method=method, overlay=overlay)
        if picture and not checks:
            return _picture(self.doubts.sweep_sheet(image.read_bytes(), asked), "png")  # type: ignore[return-value]
        return self.doubts.trust(image.read_bytes(), asked, _names(checks))

    @bentoml.api
    @answered
    def trace(
        self,
        image: Picture,
        target: Target = None,
        against: Against = None,
        block: Block = None,
        picture: AsPicture = False,
    ) -> TraceAnswer:
        """Grad-CAM's five steps, with the channels that matter most."""
        asked = self.request(target, against, block=block)
        if picture:
            return _picture(self.doubts.trace_sheet(image.read_bytes(), asked), "png")  # type: ignore[return-value]
        return self.doubts.trace(image.read_bytes(), asked)

    @bentoml.api
    @answered
    def whatif(
        self,
        image: Picture,
        box: str = "",
        share: float = 0.15,
        cover: str = "blur",
        target: Target = None,
        block: Block = None,
        method: Method = None,
        overlay: bool = False,
    ) -> WhatIfAnswer:
        """The change of every score when ``box`` (x0,y0,x1,y1 in pixels of the picture), or else the hottest
        ``share`` of the map, is covered by ``blur`` or ``mean``.
        """
        asked = self.request(target, block=block, method=method, overlay=overlay)
        return self.doubts.what_if(image.read_bytes(), asked, box=box, share=share, cover=cover)

    @bentoml.api
    @answered
    def split(
        self,
        image: Picture,
        target: Target = None,
        against: Against = None,
        block: Block = None,
        picture: AsPicture = False,
    ) -> SplitAnswer:
        """The evidence at an inception block by branch, at a residual block by skip and branch."""
        asked = self.request(target, against, block=block)
        if picture:
            return _picture(self.doubts.split_sheet(image.read_bytes(), asked), "png")  # type: ignore[return-value]
        return self.doubts.split(image.read_bytes(), asked)

    @bentoml.api
    @answered
    def activations(
        self, image: Picture, blocks: str = "", channels: int = 8, picture: AsPicture = False
    ) -> ActivationsAnswer:
        """Shapes, statistics and strongest channels of blocks named with commas between."""
        names = _names(blocks)
        if picture:
            sheet = self.engine.activation_sheet(image.read_bytes(), blocks=names, channels=channels)
            return _picture(sheet, "png")  # type: ignore[return-value]
        return self.engine.activations(image.read_bytes(), blocks=names, channels=channels)


cast("Service[CameraLucida]", CameraLucida).add_asgi_middleware(Edge, max_body_bytes=settings.max_body_bytes)


def _names(listed: str) -> list[str]:
    return [name.strip() for name in listed.split(",") if name.strip()]


def _picture(data: bytes, encoding: str, **headers: str) -> Response:
    named = {f"X-Lucida-{name.title()}": quote(value) for name, value in headers.items()}
    return Response(data, media_type=f"image/{encoding}", headers=named)
