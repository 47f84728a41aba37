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
from service.schemas import ActivationsAnswer, ExplainAnswer, PredictAnswer
from service.settings import Settings

if TYPE_CHECKING:
    from bentoml import Service

    from service.engine import Engine

settings = Settings()
pages = make_pages()

Target = Annotated[str | None, Field(description="Class to explain, by name; the highest score by default.")]
Block = Annotated[
    str | None, Field(description="Block to explain at; the model's Grad-CAM block by default.")
]
Picture = Annotated[Path, Field(description="The picture: JPEG, PNG, WebP, GIF, BMP or TIFF.")]


@bentoml.service(
    name="camera_lucida",
    threads=settings.request_threads,
    traffic={"timeout": 60},
    http={"host": "127.0.0.1", "port": 3000},
)
@bentoml.asgi_app(pages, path="/")
class CameraLucida:
    """Predictions, activations and Grad-CAM evidence of one fine-tuned classifier."""

    stored = BentoModel("camera-lucida:latest")

    def __init__(self) -> None:
        """Load the bundle, check it, and explain its probe once; the service is ready after that."""
        from service.engine import Engine

        folder = settings.bundle if settings.bundle is not None else Path(self.stored.path)
        self.engine: Engine = Engine(folder, settings)
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
        top_k: int = 1,
        block: Block = None,
        overlay: bool = False,
    ) -> ExplainAnswer:
        """The prediction, and Grad-CAM evidence for the class asked for or for the top k."""
        return self.engine.explain(
            image.read_bytes(), target=target, top_k=top_k, block=block, overlay=overlay
        )

    @bentoml.api
    @answered
    def heatmap(
        self,
        image: Picture,
        target: Target = None,
        block: Block = None,
        encoding: Literal["jpeg", "png"] = "jpeg",
    ) -> Annotated[Path, ContentType("image/*")]:
        """The overlay itself, as a picture; its status and label are in headers X-Lucida-Status and
        -Label.
        """
        drawn, shown = self.engine.heatmap(image.read_bytes(), target=target, block=block, encoding=encoding)
        return _picture(drawn, encoding, status=shown.status, label=shown.label)  # type: ignore[return-value]

    @bentoml.api
    @answered
    def activations(
        self, image: Picture, blocks: str = "", channels: int = 8, picture: bool = False
    ) -> ActivationsAnswer:
        """Shapes, statistics and strongest channels of blocks named with commas between; as a PNG with
        ``picture``.
        """
        names = [name.strip() for name in blocks.split(",") if name.strip()]
        if picture:
            sheet = self.engine.activation_sheet(image.read_bytes(), blocks=names, channels=channels)
            return _picture(sheet, "png")  # type: ignore[return-value]
        return self.engine.activations(image.read_bytes(), blocks=names, channels=channels)


cast("Service[CameraLucida]", CameraLucida).add_asgi_middleware(Edge, max_body_bytes=settings.max_body_bytes)


def _picture(data: bytes, encoding: str, **headers: str) -> Response:
    named = {f"X-Lucida-{name.title()}": quote(value) for name, value in headers.items()}
    return Response(data, media_type=f"image/{encoding}", headers=named)
