"""The store of the jobs that the settings name."""

from __future__ import annotations

from service.jobs.folder_store import FolderJobStore
from service.jobs.store import JobStore
from service.settings import Settings


def open_job_store(settings: Settings, *, patience: float) -> JobStore:
    """Return the store of the jobs: a folder, or a bucket, whose requests are repeated for ``patience``
    seconds.

    Raises JobStoreUnavailable for a URL or credentials that cannot be used at all.
    """
    if settings.jobs_url is None:
        return FolderJobStore(settings.jobs, most_bytes=settings.max_jobs_bytes)
    # Its library is not a small one, and is of no use to a service of one machine.
    from service.jobs.bucket_store import BucketJobStore

    return BucketJobStore(settings.jobs_url, most_bytes=settings.max_jobs_bytes, patience=patience)
