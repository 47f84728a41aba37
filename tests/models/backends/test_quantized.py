"""int8 blocks beside a bundle are read only where they belong to it and nobody altered them."""

from __future__ import annotations

import json

import pytest

from models.backends.quantized import (
    GRAPH_FILE,
    NOTE_FILE,
    TENSOR_FILE,
    QuantizationFigures,
    QuantizedBlocks,
    read_quantized,
)
from models.errors import BundleError

DIGEST = "d" * 64
FIGURES = QuantizationFigures(
    calibration_images=100, images=50, top1_agreement=1.0, map_correlation=0.995, worst_map_correlation=0.9,
    close_calls=2,
)  # fmt: skip
BLOCKS = QuantizedBlocks(b"<net/>", b"tensors", FIGURES)


@pytest.fixture
def folder(tmp_path):
    BLOCKS.write(tmp_path, DIGEST)
    return tmp_path


def test_what_was_written_is_read(folder):
    assert read_quantized(folder, DIGEST) == BLOCKS


def test_a_bundle_without_any_has_none(tmp_path):
    assert read_quantized(tmp_path, DIGEST) is None


@pytest.mark.parametrize("name", [GRAPH_FILE, TENSOR_FILE])
def test_an_altered_file_is_refused(folder, name):
    (folder / name).write_bytes(b"other")
    with pytest.raises(BundleError, match=f"{name} does not have the digest"):
        read_quantized(folder, DIGEST)


@pytest.mark.parametrize("name", [GRAPH_FILE, TENSOR_FILE])
def test_a_missing_file_is_refused(folder, name):
    (folder / name).unlink()
    with pytest.raises(BundleError, match=name):
        read_quantized(folder, DIGEST)


def test_blocks_of_another_bundle_are_refused(folder):
    with pytest.raises(BundleError, match="of another bundle"):
        read_quantized(folder, "e" * 64)


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{}",
        json.dumps({"bundle digest": DIGEST}),
        json.dumps({"bundle digest": DIGEST, "files": {}, "figures": None}),
        json.dumps({"bundle digest": DIGEST, "files": [], "figures": {"images": 3}}),
        json.dumps({"bundle digest": DIGEST, "files": {GRAPH_FILE: 1, TENSOR_FILE: 2}, "figures": None}),
        "no json",
        '{"bundle digest": NaN}',
    ],
)
def test_a_damaged_note_is_a_sentence(folder, content):
    (folder / NOTE_FILE).write_text(content)
    with pytest.raises(BundleError):
        read_quantized(folder, DIGEST)


@pytest.mark.parametrize(
    "graph", [b"", b"<net/>", b"\x00" * 100, b"<!DOCTYPE a [<!ENTITY b 'c'>]><net>&b;</net>"]
)
def test_what_is_no_graph_is_refused_when_it_is_read(graph):
    pytest.importorskip("openvino", reason="needs OpenVINO: pip install 'camera-lucida[fast]'")
    with pytest.raises(BundleError, match="int8 blocks cannot be read"):
        QuantizedBlocks(graph, b"").read()
