"""What a Bento is made of, as CycloneDX 1.6 has it: its packages at their versions, and its model."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, version

from cyclonedx.factory.license import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import License
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from packageurl import PackageURL
from packaging.requirements import InvalidRequirement, Requirement

SBOM_FILE = "sbom.cdx.json"
_NAMESPACE = uuid.UUID("5f0c6d0e-6d0a-5b53-9f5b-0c6a4f7f5c11")


@dataclass(frozen=True, slots=True)
class ServedModel:
    """The model within a Bento."""

    name: str
    version: str
    digest: str
    """Of its bundle."""
    files: Mapping[str, str]
    """SHA-256 of the bundle's files."""


def make_sbom(requirements: Sequence[str], served: ServedModel) -> str:
    """Return the JSON of a Bento with these lines of requirements and this model; the same for the same
    input, but for the time that it names. Lines that are no requirement (options, comments) are left out.
    """
    own = Component(
        name="camera-lucida", version=_own_version(), type=ComponentType.APPLICATION,
        bom_ref="camera-lucida", licenses=_licences("Apache-2.0"),
    )  # fmt: skip
    components = [component for line in requirements if (component := _package(line)) is not None]
    components.append(_model(served))
    bom = Bom(components=components)
    bom.serial_number = uuid.uuid5(_NAMESPACE, f"{served.digest} {sorted(requirements)}")
    bom.metadata.component = own
    bom.register_dependency(own, components)
    outputter = make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6)
    return outputter.output_as_string(indent=2)


def _package(line: str) -> Component | None:
    try:
        requirement = Requirement(line.partition(" #")[0].strip())
    except InvalidRequirement:
        return None
    pinned = next((item.version for item in requirement.specifier if item.operator == "=="), None)
    purl = PackageURL("pypi", name=requirement.name.lower().replace("_", "-"), version=pinned)
    return Component(
        name=requirement.name, version=pinned, type=ComponentType.LIBRARY, purl=purl,
        bom_ref=purl.to_string(), licenses=_licences(_installed_licence(requirement.name)),
    )  # fmt: skip


def _model(served: ServedModel) -> Component:
    return Component(
        name=served.name, version=served.version, type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=f"model:{served.digest}",
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=served.digest)],
        properties=[Property(name=f"sha256:{name}", value=value) for name, value in served.files.items()],
    )  # fmt: skip


def _installed_licence(name: str) -> str | None:
    """Return the licence expression of a package that is installed here, where it names one."""
    try:
        expression = metadata(name).json.get("license_expression")
    except PackageNotFoundError:
        return None
    return expression if isinstance(expression, str) else None


def _licences(expression: str | None) -> list[License]:
    return [LicenseFactory().make_from_string(expression)] if expression else []


def _own_version() -> str:
    try:
        return version("camera-lucida")
    except PackageNotFoundError:  # a Bento holds the code beside, not installed
        return "0"
