"""Jobs over REST: submit, status, result, cancel."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from http import HTTPStatus
from typing import Any

from anyio import to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from service import schemas
from service.api.routes import AppState, check, json_errors
from service.errors import HTTPError
from service.jobs.queue import make_queue
from service.jobs.store import UNFINISHED_STATES, Job, JobStore
from service.operations.job_operations import JOB_OPERATIONS, JobOperation
from service.operations.multipart import Upload, check_form, parse_form, read_body, validate_form


class JobApi:
    """What the routes share: the folder, and the queue's near end."""

    def __init__(self, state: AppState) -> None:
        self.settings, self.desk = state.settings, state.desk
        self.store = JobStore(state.settings.jobs)
        self._hand_out = make_queue(state.settings, lambda job: None)[1] if state.settings.max_jobs else None

    def submit(self, verb: JobOperation, upload: Upload, owner: str | None) -> Job:
        """Keep a job and hand it out; a Refusal where there are too many."""
        fields = {name: value for name, value in upload.fields.items() if value}
        with self.store.submitting():
            if len(self.store.unfinished()) >= self.settings.max_jobs or self._hand_out is None:
                raise HTTPError(
                    HTTPStatus.TOO_MANY_REQUESTS, "too_many_jobs",
                    f"There are {self.settings.max_jobs} jobs waiting or running, which is the limit.",
                    {"Retry-After": "60"},
                )  # fmt: skip
            job = self.store.create(verb.name, fields, upload.pictures, owner)
        self._hand_out(job.id)
        return job

    def told(self, job: Job) -> schemas.JobAnswer:
        """A job and how far it is."""
        status = self.store.status(job)
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

    def of(self, request: Request) -> Job:
        """The job that a path names, where it is the asker's own; a Refusal otherwise."""
        job = self.store.get(request.path_params["job"])
        if job is None or job.owner != request.scope["state"].get("owner"):
            raise HTTPError(
                HTTPStatus.NOT_FOUND, "no_such_job", "There is no such job; it may have been forgotten since."
            )
        return job


def job_routes() -> list[Route]:
    """Submission of each verb, and what can be asked about a job."""
    return [
        *(
            Route(f"/jobs/{verb.name}", json_errors(partial(_submit, verb=verb)), methods=["POST"])
            for verb in JOB_OPERATIONS.values()
        ),
        Route("/jobs", json_errors(_all), methods=["GET"]),
        Route("/jobs/{job}", json_errors(_status_or_cancel), methods=["GET", "DELETE"]),
        Route("/jobs/{job}/result", json_errors(_result), methods=["GET"]),
    ]


async def _submit(request: Request, state: AppState, *, verb: JobOperation) -> Response:
    jobs: JobApi = request.app.state.jobs
    settings = state.settings
    check_form(request)
    most = settings.max_job_bytes
    with state.desk.hold() as held:
        body = await read_body(request, most=most, seconds=settings.upload_seconds, count=held.add)
        upload = await parse_form(
            request.headers,
            body,
            most_pictures=settings.max_job_pictures if verb.pictures else 0,
            need_picture=verb.pictures,
        )
        del body
        form = validate_form(verb.form, upload.fields)
        # A wrong name is told now, not by each picture's answer later.
        check(state.champion.doubts, form, unlimited=True)
        owner = request.scope["state"].get("owner")
        job = await to_thread.run_sync(lambda: jobs.submit(verb, upload, owner))
    return _told(jobs, job, HTTPStatus.ACCEPTED, {"Location": f"/jobs/{job.id}"})


async def _all(request: Request, state: AppState) -> Response:
    jobs: JobApi = request.app.state.jobs
    owner = request.scope["state"].get("owner")

    def mine() -> schemas.JobsAnswer:
        own = [job for job in reversed(jobs.store.jobs()) if job.owner == owner]
        return schemas.JobsAnswer(jobs=[jobs.told(job) for job in own])

    # Hundreds of small files: not on the thread that everybody's requests share.
    return JSONResponse((await to_thread.run_sync(mine)).model_dump())


async def _status_or_cancel(request: Request, state: AppState) -> Response:
    jobs: JobApi = request.app.state.jobs
    job = jobs.of(request)
    if request.method != "DELETE":
        return _told(jobs, job)
    if jobs.store.status(job).state in UNFINISHED_STATES:
        jobs.store.cancel(job)
        return _told(jobs, job)
    told = _told(jobs, job)
    await to_thread.run_sync(jobs.store.forget, job)
    return told


async def _result(request: Request, state: AppState) -> Response:
    jobs: JobApi = request.app.state.jobs
    job = jobs.of(request)
    head = JSONResponse({"id": job.id, "state": jobs.store.status(job).state}).body

    def parts() -> Iterator[bytes]:
        yield bytes(head)[:-1] + b',"answers":['
        for n, answer in enumerate(jobs.store.answers(job)):
            yield b"," + answer if n else answer
        yield b"]}"

    return StreamingResponse(parts(), media_type="application/json")


def _told(
    jobs: JobApi, job: Job, status: int = HTTPStatus.OK, headers: dict[str, str] | None = None
) -> Response:
    content: dict[str, Any] = jobs.told(job).model_dump()
    return JSONResponse(content, status_code=status, headers=headers)
