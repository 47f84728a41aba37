"""The SBOM: valid by CycloneDX's own schema, and complete."""

from __future__ import annotations

import json

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from pipelines.release.sbom import ServedModel, make_sbom
from tests.support.serving import PROJECT

SERVED = ServedModel("wings", "7", "a" * 64, {"weights.safetensors": "b" * 64})


def test_it_is_valid_and_names_every_package_and_the_model():
    lines = (PROJECT / "service/deploy/requirements.txt").read_text().splitlines()
    text = make_sbom([*lines, "--extra-index-url https://example.org", "# a comment", ""], SERVED)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    content = json.loads(text)
    packages = {item["purl"] for item in content["components"] if item["type"] == "library"}
    assert len(packages) == len(lines)
    assert any(purl.startswith("pkg:pypi/torch@2") for purl in packages)
    (model,) = [item for item in content["components"] if item["type"] == "machine-learning-model"]
    assert model["hashes"] == [{"alg": "SHA-256", "content": "a" * 64}]
    assert (model["name"], model["version"]) == ("wings", "7")
    assert content["metadata"]["component"]["name"] == "camera-lucida"


def test_the_same_bento_has_the_same_serial_number_and_another_model_another():
    lines = ["torch==2.14.1", "pillow==13.0.0"]
    numbers = [
        json.loads(make_sbom(lines, served))["serialNumber"]
        for served in (SERVED, SERVED, ServedModel("wings", "8", "c" * 64, {}))
    ]
    assert numbers[0] == numbers[1] != numbers[2]
