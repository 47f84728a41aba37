"""Concepts beside a bundle that is served."""

from __future__ import annotations

import shutil
from contextlib import closing

import pytest

from models.errors import BundleError
from models.introspection.concept_set import read_concepts, write_concepts
from service.inference.predictor import Predictor
from service.settings import Settings


def test_concepts_of_another_bundle_or_block_stop_the_start(complete_folder, bundle_folder, tmp_path):
    concepts = read_concepts(complete_folder)
    assert concepts is not None
    with closing(Predictor(complete_folder, Settings(engine="eager"))) as predictor:
        assert predictor.concepts is not None
    other = shutil.copytree(bundle_folder, tmp_path / "other")
    write_concepts(concepts, other)
    with pytest.raises(BundleError, match="The concepts in other are of the bundle"):
        Predictor(other, Settings(engine="eager"))
    copy = shutil.copytree(complete_folder, tmp_path / "copy")
    text = (copy / "concepts.json").read_text()
    (copy / "concepts.json").write_text(text.replace(f'"block": "{concepts.block}"', '"block": "stage9"'))
    with pytest.raises(BundleError, match="'stage9', which the model has not"):
        Predictor(copy, Settings(engine="eager"))
