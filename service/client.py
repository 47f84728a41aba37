"""A client of the service, for people who would rather not write HTTP.

    from service.client import Client

    with Client("http://127.0.0.1:3000") as lucida:
        answer = lucida.explain("bee.jpg", top_k=2)
        print(answer.predictions[0].label, answer.evidence[0].grid.max)

Answers are the service's own types; refusals are :class:`ServiceError`. It needs httpx and pydantic, and
neither torch nor BentoML.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import httpx

from service import schemas

ImageSource = str | Path | bytes
"""A path, or the encoded bytes."""
A = TypeVar("A", bound=schemas.Answer)

_STATES_OF_WORK = {"queued", "running"}
_IMAGE_ERRORS = {"unsupported_format", "image_too_large", "unreadable_image"}


class ServiceError(Exception):
    """The service refused or failed."""

    def __init__(self, status: int, kind: str, message: str, retry_after: float | None) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        """A name for programs, such as unsupported_format."""
        self.retry_after = retry_after
        """Seconds after which the same request may go well; None where it would not."""


class Client:
    """A client of one service; may be used from several threads.

    ``patience`` is how many seconds a request waits in all where the service is busy and says when to come
    again.
    """

    def __init__(
        self, url: str = "http://127.0.0.1:3000", *, key: str | None = None, timeout: float = 30.0,
        patience: float = 0.0,
    ) -> None:  # fmt: skip
        headers = {"X-API-Key": key} if key is not None else {}
        # Proxy variables of the environment are for the internet, not for a service that has an address.
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout, trust_env=False)
        self._patience = patience

    def __enter__(self) -> Self:
        """Return the client itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close its connections."""
        self.close()

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def predict(self, image: ImageSource, **options: Any) -> schemas.PredictAnswer:
        """Ask for the scores of all classes."""
        return self._ask("/predict", [image], options, schemas.PredictAnswer)

    def predict_many(
        self, images: Sequence[ImageSource], **options: Any
    ) -> list[schemas.PredictAnswer | schemas.ErrorAnswer]:
        """Ask for scores of several images in one request; one that cannot be used has its error in its
        place.
        """
        return self._several("/predict", images, options, schemas.PredictAnswer)

    def explain(self, image: ImageSource, **options: Any) -> schemas.ExplainAnswer:
        """Ask for the prediction with its evidence; options as in docs/reference/answers.md."""
        return self._ask("/explain", [image], options, schemas.ExplainAnswer)

    def explain_many(
        self, images: Sequence[ImageSource], **options: Any
    ) -> list[schemas.ExplainAnswer | schemas.ErrorAnswer]:
        """Ask for evidence for several images in one request."""
        return self._several("/explain", images, options, schemas.ExplainAnswer)

    def heatmap(
        self, image: ImageSource, *, encoding: Literal["jpeg", "png"] = "jpeg", **options: Any
    ) -> bytes:
        """Ask for the image with the map over it, encoded."""
        return self._post("/heatmap", [image], {"encoding": encoding, **options}).content

    def trust(self, image: ImageSource, **options: Any) -> schemas.TrustAnswer:
        """Ask how far the evidence can be trusted."""
        return self._ask("/trust", [image], options, schemas.TrustAnswer)

    def trace(self, image: ImageSource, **options: Any) -> schemas.TraceAnswer:
        """Ask for Grad-CAM's five steps."""
        return self._ask("/trace", [image], options, schemas.TraceAnswer)

    def what_if(self, image: ImageSource, **options: Any) -> schemas.WhatIfAnswer:
        """Ask for the scores with a part covered."""
        return self._ask("/whatif", [image], options, schemas.WhatIfAnswer)

    def split(self, image: ImageSource, **options: Any) -> schemas.SplitAnswer:
        """Ask for the evidence by the parts of a block."""
        return self._ask("/split", [image], options, schemas.SplitAnswer)

    def concepts(self, image: ImageSource, **options: Any) -> schemas.ConceptSharesAnswer:
        """Ask for the share of each of the model's concepts in the prediction."""
        return self._ask("/concepts", [image], options, schemas.ConceptSharesAnswer)

    def activations(self, image: ImageSource, **options: Any) -> schemas.ActivationsAnswer:
        """Ask for statistics and strongest channels of blocks."""
        return self._ask("/activations", [image], options, schemas.ActivationsAnswer)

    def model(self) -> dict[str, Any]:
        """Ask for the card of the model that is served."""
        card: dict[str, Any] = self._get("/model").json()
        return card

    def filters(self, **options: Any) -> schemas.FiltersAnswer:
        """Ask for templates of what channels look for."""
        return schemas.FiltersAnswer.model_validate_json(self._get("/filters", _texts(options)).content)

    def all_concepts(self) -> schemas.ConceptsAnswer:
        """Ask for the model's concepts with their patches."""
        return schemas.ConceptsAnswer.model_validate_json(self._get("/concepts").content)

    # ------------------------------------------------------------ jobs

    def submit(self, verb: str, images: Sequence[ImageSource], **options: Any) -> schemas.JobAnswer:
        """Have images worked on in the background."""
        reply = self._post(f"/jobs/{verb}", images, options)
        return schemas.JobAnswer.model_validate_json(reply.content)

    def job(self, name: str) -> schemas.JobAnswer:
        """Ask how far a job is."""
        return schemas.JobAnswer.model_validate_json(self._get(f"/jobs/{name}").content)

    def watch(self, name: str, *, every: float = 0.5) -> Iterator[schemas.JobAnswer]:
        """Yield the status of a job, again and again until it has ended."""
        while True:
            status = self.job(name)
            yield status
            if status.state not in _STATES_OF_WORK:
                return
            time.sleep(every)

    def result(self, name: str) -> schemas.JobResult:
        """Ask for the results of a job so far."""
        return schemas.JobResult.model_validate_json(self._get(f"/jobs/{name}/result").content)

    def cancel(self, name: str) -> schemas.JobAnswer:
        """Cancel a job, or forget it once it has ended."""
        return schemas.JobAnswer.model_validate_json(_checked(self._http.delete(f"/jobs/{name}")).content)

    # ------------------------------------------------------------ parts

    def _ask(self, route: str, images: Sequence[ImageSource], options: dict[str, Any], shape: type[A]) -> A:
        return shape.model_validate_json(self._post(route, images, options).content)

    def _several(
        self, route: str, images: Sequence[ImageSource], options: dict[str, Any], shape: type[A]
    ) -> list[A | schemas.ErrorAnswer]:
        if len(images) == 1:
            # One image's failure is the whole answer's; among several it is that image's own.
            try:
                return [self._ask(route, images, options, shape)]
            except ServiceError as error:
                if error.kind not in _IMAGE_ERRORS:
                    raise
                return [schemas.ErrorAnswer(error=str(error), kind=error.kind)]
        answers = self._post(route, images, options).json()["answers"]
        return [
            schemas.ErrorAnswer.model_validate(answer) if "error" in answer else shape.model_validate(answer)
            for answer in answers
        ]

    def _get(self, route: str, query: dict[str, str] | None = None) -> httpx.Response:
        return self._patiently(lambda: self._http.get(route, params=query))

    def _post(self, route: str, images: Sequence[ImageSource], options: dict[str, Any]) -> httpx.Response:
        files = [("image", ("picture", _bytes(image))) for image in images]
        # A form needs a field to be one.
        fields = _texts(options) or ({} if files else {"deadline_ms": ""})
        texts = [(name, (None, value)) for name, value in fields.items()]
        return self._patiently(lambda: self._http.post(route, files=[*texts, *files]))

    def _patiently(self, ask: Callable[[], httpx.Response]) -> httpx.Response:
        until = time.monotonic() + self._patience
        while True:
            try:
                return _checked(ask())
            except ServiceError as error:
                if error.retry_after is None or time.monotonic() + error.retry_after > until:
                    raise
                time.sleep(error.retry_after)


def _checked(reply: httpx.Response) -> httpx.Response:
    if reply.is_success:
        return reply
    try:
        answer = schemas.ErrorAnswer.model_validate_json(reply.content)
        kind, message = answer.kind, answer.error
    except ValueError:
        kind, message = "not_ours", f"{reply.status_code} {reply.reason_phrase} from {reply.url.host}."
    after = reply.headers.get("retry-after", "")
    raise ServiceError(reply.status_code, kind, message, float(after) if after.isdigit() else None)


def _bytes(image: ImageSource) -> bytes:
    return image if isinstance(image, bytes) else Path(image).read_bytes()


def _texts(options: dict[str, Any]) -> dict[str, str]:
    """Convert options to texts as a form has them; None is left out."""
    texts = {}
    for name, value in options.items():
        if isinstance(value, bool):
            texts[name] = str(value).lower()
        elif isinstance(value, (list, tuple)):
            texts[name] = ",".join(map(str, value))
        elif value is not None:
            texts[name] = str(value)
    return texts
