"""Jobs over REST: submit, status, result, cancel."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from http import HTTPStatus

from anyio import to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from service import schemas
from service.api.routes import AppState, json_errors
from service.errors import HTTPError
from service.jobs.open import open_job_store
from service.jobs.store import UNFINISHED_STATES, Job, JobStoreUnavailable, is_no_room
from service.operations import multipart
from service.operations.operation import Operation
from service.operations.registry import JOB_OPERATIONS

log = logging.getLogger("lucida.jobs")

_PATIENCE_SECONDS = 3.0


class JobApi:
    """The routes of the jobs, over the store that the settings name."""

    def __init__(self, state: AppState) -> None:
        self._state, self._settings = state, state.settings
        self._store = open_job_store(state.settings, patience=_PATIENCE_SECONDS)

    def routes(self) -> list[Route]:
        """Return the submission of each operation, and what can be asked about a job."""
        return [
            *(
                self._route(f"/jobs/{operation.name}", partial(self._submit, operation=operation), "POST")
                for operation in JOB_OPERATIONS.values()
            ),
            self._route("/jobs", self._list, "GET"),
            self._route("/jobs/{job}", self._status_or_cancel, "GET", "DELETE"),
            self._route("/jobs/{job}/result", self._result, "GET"),
        ]

    def _route(self, path: str, answer: Callable[[Request], Awaitable[Response]], *methods: str) -> Route:
        async def endpoint(request: Request, state: AppState) -> Response:
            try:
                return await answer(request)
            except JobStoreUnavailable as error:
                log.warning("%s", error)
                raise HTTPError(
                    HTTPStatus.SERVICE_UNAVAILABLE, "jobs_unavailable",
                    "The store of the jobs does not answer now. Nothing is lost; ask again.",
                    {"Retry-After": "10"},
                ) from error  # fmt: skip

        return Route(path, json_errors(endpoint, self._state), methods=[*methods])

    async def _submit(self, request: Request, *, operation: Operation) -> Response:
        multipart.check_form(request)
        settings = self._settings
        with self._state.admission.reserve() as reserved:
            body = await multipart.read_body(
                request, most=settings.max_job_bytes, seconds=settings.upload_seconds, count=reserved.add
            )
            upload = await multipart.parse_form(
                request.headers,
                body,
                most_images=settings.max_job_pictures if operation.takes_image else 0,
                need_image=operation.takes_image,
            )
            del body
            form = multipart.validate_form(operation.form, upload.fields)
            # A wrong name is refused now, not by each image's answer later.
            form.check(self._state.models.predictor, unlimited=True)
            job = await to_thread.run_sync(self._create, operation, upload, _owner(request))
        headers = {"Location": f"{self._settings.root_path}/jobs/{job.id}"}
        return await to_thread.run_sync(self._job_response, job, HTTPStatus.ACCEPTED, headers)

    def _create(self, operation: Operation, upload: multipart.Upload, owner: str | None) -> Job:
        """Store a job; raises HTTPError where there are too many, or no room for this one."""
        fields = {name: value for name, value in upload.fields.items() if value}
        try:
            with self._store.submitting():
                if len(self._store.unfinished()) >= self._settings.max_jobs:
                    raise HTTPError(
                        HTTPStatus.TOO_MANY_REQUESTS, "too_many_jobs",
                        f"There are {self._settings.max_jobs} jobs waiting or running, which is the limit.",
                        {"Retry-After": "60"},
                    )  # fmt: skip
                self._store.make_room(sum(map(len, upload.images)))
                return self._store.create(operation.name, fields, upload.images, owner)
        except OSError as error:
            if not is_no_room(error):
                raise
            raise HTTPError(
                HTTPStatus.INSUFFICIENT_STORAGE, "jobs_full",
                "There is no room for another job. Delete jobs that have ended, or come again later.",
                {"Retry-After": "60"},
            ) from error  # fmt: skip

    async def _list(self, request: Request) -> Response:
        owner = _owner(request)

        def own_jobs() -> schemas.JobsAnswer:
            own = [job for job in reversed(self._store.jobs()) if job.owner == owner]
            return schemas.JobsAnswer(jobs=[self._describe(job) for job in own])

        # Hundreds of small files: not on the thread that everybody's requests share.
        return JSONResponse((await to_thread.run_sync(own_jobs)).model_dump())

    async def _status_or_cancel(self, request: Request) -> Response:
        return await to_thread.run_sync(self._find_and_cancel, request)

    def _find_and_cancel(self, request: Request) -> Response:
        job = self._find(request)
        if request.method != "DELETE":
            return self._job_response(job)
        if self._store.status(job).state in UNFINISHED_STATES:
            self._store.cancel(job)
            return self._job_response(job)
        response = self._job_response(job)
        self._store.remove(job)
        return response

    async def _result(self, request: Request) -> Response:
        job = await to_thread.run_sync(self._find, request)
        status = await to_thread.run_sync(self._store.status, job)
        head = JSONResponse({"id": job.id, "state": status.state}).body

        def parts() -> Iterator[bytes]:
            yield bytes(head)[:-1] + b',"answers":['
            for n, answer in enumerate(self._store.answers(job)):
                yield b"," + answer if n else answer
            yield b"]}"

        return StreamingResponse(parts(), media_type="application/json")

    def _find(self, request: Request) -> Job:
        """Return the job that a path names, where it is the asker's own; raises HTTPError otherwise."""
        job = self._store.get(request.path_params["job"])
        if job is None or job.owner != _owner(request):
            raise HTTPError(
                HTTPStatus.NOT_FOUND, "no_such_job", "There is no such job; it may have been forgotten since."
            )
        return job

    def _describe(self, job: Job) -> schemas.JobAnswer:
        status = self._store.status(job)
        return schemas.JobAnswer(
            id=job.id,
            verb=job.verb,
            state=status.state,
            pictures=job.pictures,
            done=status.done,
            progress=status.progress,
            eta_seconds=status.eta_seconds,
            created=job.created,
            started=status.started,
            ended=status.ended,
            error=status.error,
        )

    def _job_response(
        self, job: Job, status: int = HTTPStatus.OK, headers: dict[str, str] | None = None
    ) -> Response:
        return JSONResponse(self._describe(job).model_dump(), status_code=status, headers=headers)


def _owner(request: Request) -> str | None:
    """Return the name of the key that the request was made with."""
    owner: str | None = request.scope["state"].get("owner")
    return owner
