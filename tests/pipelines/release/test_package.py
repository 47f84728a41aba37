"""Bento models by the name of the registered model: none is found under another's name."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import bentoml
import pytest

from pipelines.release import package as packaging
from pipelines.release.package import tag_name
from pipelines.release.promote import promote
from service import app
from tests.pipelines.tracking.test_registry import registered
from tests.support.serving import BIN, PROJECT, free_port, start_service

PACKAGE = """
import json
import bentoml
from pipelines.release.package import package
for name in ("wings", "My-Birds"):
    package(f"{name}@champion", build=False)
print(json.dumps({model.info.labels["model"]: model.tag.name for model in bentoml.models.list()}))
"""


@pytest.mark.soak
def test_each_model_has_a_bento_model_of_its_own_and_a_clone_asks_which(in_tmp, bundle_folder):
    for name in ("wings", "My-Birds"):
        registered(bundle_folder, name, 0.9)
        promote(name)
    # BentoML looks for its home once in a process.
    made = subprocess.run(
        [sys.executable, "-c", PACKAGE], capture_output=True, text=True, cwd=PROJECT, check=True
    )
    tags = json.loads(made.stdout.splitlines()[-1])
    assert tags == {"wings": "wings", "My-Birds": tag_name("My-Birds")}
    settings = {name: value for name, value in os.environ.items() if not name.startswith("LUCIDA_")}
    settings |= {"LUCIDA_JOBS": str(in_tmp / "jobs"), "LUCIDA_WORKERS": "1"}
    words = [BIN / "bentoml", "serve", ".", "--port", str(free_port())]
    done = subprocess.run(
        words, cwd=PROJECT, env=settings, capture_output=True, text=True, timeout=60, check=False
    )
    said = done.stdout + done.stderr
    assert f"set LUCIDA_BENTO_MODEL to one of {tag_name('My-Birds')}, wings" in said
    assert "Traceback" not in said
    served = start_service(PROJECT, in_tmp / "log", settings | {"LUCIDA_BENTO_MODEL": "wings"})
    try:
        served.wait_ready()
        assert served.get("/model").json()["model"] == "wings"
    finally:
        served.stop()


def test_the_service_looks_for_the_label_that_packaging_writes():
    assert packaging._PROJECT_LABEL == app.PROJECT_LABEL


@pytest.mark.parametrize(
    ("name", "begins"),
    [("my_pictures", "my_pictures"), ("My-Birds", "my-birds-"), ("Vögel", "v-gel-"), ("鳥", "model-"),
     ("x" * 200, "x" * 54 + "-"), ("-a.", "a-")],
)  # fmt: skip
def test_a_tag_begins_with_the_name_and_is_one(name, begins):
    tag = tag_name(name)
    assert tag.startswith(begins)
    bentoml.Tag(tag, "1")
    if tag != name:
        assert tag != tag_name(name.lower() + "x")


def test_names_that_read_alike_have_tags_of_their_own():
    assert len({tag_name(name) for name in ("my_birds", "My_Birds", "my-birds", "MY.BIRDS")}) == 4
