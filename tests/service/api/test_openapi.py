"""The OpenAPI document says the truth: schemathesis asks what it allows and what it forbids."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from service.operations.registry import OPERATIONS
from service.schemas import CHECKS


def test_the_document_names_every_route_and_the_models_own_choices(service):
    found = service.get("/openapi.json").json()
    assert service.get("/docs.json").json() == found
    assert {verb.path for verb in OPERATIONS.values()} <= set(found["paths"])
    assert {"/model", "/anatomy", "/filters", "/jobs", "/jobs/{job}", "/jobs/explain"} <= set(found["paths"])
    fields = found["paths"]["/explain"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert fields["properties"]["target"]["enum"] == ["ant", "bee", "flamingo"]
    assert "rise" in fields["properties"]["method"]["enum"]
    assert fields["properties"]["image"]["maxItems"] == 16
    for path, operations in found["paths"].items():
        for method, operation in operations.items():
            assert operation["summary"], (method, path)


def test_a_method_that_a_path_does_not_take_is_refused_with_all_that_it_takes(service):
    for path, operations in service.get("/openapi.json").json()["paths"].items():
        if "{" in path or path.startswith("/jobs/"):
            # One path of a job's own is that of any job, too.
            continue
        reply = httpx.request("PATCH", f"{service.url}{path}", trust_env=False)
        assert reply.status_code == 405, path
        allowed = {method.strip().lower() for method in reply.headers["allow"].split(",")}
        assert allowed - {"head"} == set(operations), path


def test_the_checks_are_those_of_the_audit():
    from models.metrics.audit import AUDIT_CHECKS

    assert CHECKS == AUDIT_CHECKS


@pytest.mark.soak
def test_schemathesis_finds_nothing(start, small_folder, tmp_path):
    """Positive and negative requests for every operation; the whole of its output is kept on a failure."""
    # Two jobs at a time: the others are refused, as the document says, and take no time.
    own = start(small_folder, workers="2", max_queue="200", max_jobs="2")
    environment = os.environ | {"SCHEMATHESIS_HOOKS": str(Path(__file__).with_name("schemathesis_hooks.py"))}
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("schemathesis")),
            "--config-file", str(Path(__file__).with_name("schemathesis.toml")),
            "run", f"{own.url}/openapi.json",
            "--max-examples", os.environ.get("LUCIDA_SCHEMATHESIS_EXAMPLES", "1"),
            "--phases", "examples,coverage,fuzzing",
            "--request-timeout", "60", "--seed", "1", "--workers", "2", "--no-color",
        ],
        capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=400, check=False,
    )  # fmt: skip
    print(done.stdout[-1500:])
    if done.returncode:
        pytest.fail(done.stdout[-12_000:] + done.stderr[-2000:])
    assert own.get("/readyz").status_code == 200
