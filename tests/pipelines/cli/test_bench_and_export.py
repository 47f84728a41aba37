"""lucida bench and lucida export: what they print, what they write, what they refuse."""

from __future__ import annotations

import re
import shlex
import shutil

import pytest

from tests.support.serving import PROJECT


@pytest.mark.soak
def test_bench_prints_each_engine_and_the_one_that_auto_takes(at_once, bundle_folder):
    pytest.importorskip("openvino", reason="needs OpenVINO: pip install 'camera-lucida[fast]'")
    done = at_once("bench", "--bundle", str(bundle_folder), "--batch", "1")
    assert done.returncode == 0
    assert re.search(r"eager\W+fp32\W+[\d.]+\W+1\.00", done.stdout)
    assert re.search(r"openvino\W+fp32\W+[\d.]+", done.stdout)
    assert re.search(r"auto takes (eager|openvino) (fp32|bf16)\.", done.stdout)


def test_a_device_that_is_not_here_ends_a_command_with_a_sentence(at_once, bundle_folder, tmp_path):
    for command in (
        ("bench", "--bundle", str(bundle_folder)),
        ("explain", str(bundle_folder), "--out", str(tmp_path / "out"), "--bundle", str(bundle_folder)),
        ("train", "--data", "specimens"),
    ):
        done = at_once(*command, "--device", "cuda:55")
        assert done.returncode == 1
        assert "The device 'cuda:55' is not here" in " ".join((done.stdout + done.stderr).split())
    assert not (tmp_path / "out").exists()


@pytest.mark.soak
def test_export_writes_a_file_and_refuses_unknown_names(at_once, bundle_folder, tmp_path):
    pytest.importorskip("onnxruntime", reason="needs ONNX: pip install 'camera-lucida[onnx]'")
    out = tmp_path / "model.onnx"
    done = at_once("export", "onnx", "--bundle", str(bundle_folder), "--out", str(out), "--target", "wasp")
    assert done.returncode == 1
    assert "ant, bee, flamingo" in done.stderr
    assert not out.exists()
    done = at_once("export", "onnx", "--bundle", str(bundle_folder), "--out", str(out))
    assert done.returncode == 0
    assert "maps of 7 x 7; N is any" in " ".join((done.stdout + done.stderr).split())
    assert out.stat().st_size > 1_000_000


@pytest.mark.soak
def test_the_lines_of_the_readme(at_once, bundle_folder, butterflies, in_tmp):
    pytest.importorskip("onnxruntime", reason="needs ONNX: pip install 'camera-lucida[onnx]'")
    shutil.copytree(bundle_folder, "my_bundle")
    shutil.copytree(butterflies, "my_pictures")
    (in_tmp / "gate.toml").write_text('[[checks]]\nmetric = "accuracy"\nmin = 0.01\n')
    train = ("train", "--data", "my_pictures", "--preset", "quick", "--set", "sanity=none")
    assert at_once(*train).returncode == 0
    assert at_once("promote", "my_pictures").returncode == 0
    text = (PROJECT / "README.md").read_text()
    lines = re.findall(r"^\$ lucida ((?:bench|export|promote) [^#\n]*)", text, re.MULTILINE)
    assert len(lines) == 3
    for line in lines:
        done = at_once(*shlex.split(line.replace("my_pictures/7", "my_pictures/1")))
        assert done.returncode == 0, done.stdout + done.stderr
