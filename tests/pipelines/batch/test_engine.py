"""A batch job goes on with the engine that it was begun with, unless it is told another one."""

from __future__ import annotations

import json

import pytest

from models.bundle import load_bundle
from models.errors import EngineUnavailable, UnknownChoice
from pipelines.batch.engine import JOB_NOTE, make_explainer


@pytest.fixture(scope="module")
def bundle(bundle_folder):
    return load_bundle(bundle_folder)


def ran(bundle, out, **options):
    backend = make_explainer(bundle, out, **options).backend
    return backend.name, backend.precision


def test_auto_is_what_the_job_was_begun_with(bundle, tmp_path):
    pytest.importorskip("openvino", reason="needs OpenVINO: pip install 'camera-lucida[fast]'")
    (tmp_path / JOB_NOTE).write_text(json.dumps({"engine": "openvino", "precision": "fp32"}))
    assert ran(bundle, tmp_path) == ("openvino", "fp32")
    assert ran(bundle, tmp_path, precision="fp32") == ("openvino", "fp32")
    assert ran(bundle, tmp_path, engine="eager") == ("eager", "fp32")
    # Begun in another precision than is asked for now: not that job any more.
    with pytest.raises(EngineUnavailable, match="No engine computes in int8"):
        ran(bundle, tmp_path, precision="int8")


@pytest.mark.parametrize("note", ["{}", '{"pictures": 3}'])
def test_a_job_of_before_there_were_engines_goes_on_in_torch(bundle, tmp_path, note):
    (tmp_path / JOB_NOTE).write_text(note)
    assert ran(bundle, tmp_path) == ("eager", "fp32")


def test_an_unknown_engine_is_refused_with_the_choices(bundle, tmp_path):
    with pytest.raises(UnknownChoice, match="auto, eager, compile, openvino"):
        ran(bundle, tmp_path, engine="tensorrt")
