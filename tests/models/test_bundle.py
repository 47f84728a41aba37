"""A bundle is saved whole, loaded with every check, and refused when altered."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.bundle import _manifest_digest, _sha256, load_bundle, save_bundle
from models.errors import BundleError


@pytest.fixture
def copy(bundle_folder, tmp_path) -> Path:
    return Path(shutil.copytree(bundle_folder, tmp_path / "copy"))


def resign(folder: Path, **changes: object) -> None:
    """Write a manifest whose digests are right, as somebody who wants to deceive would."""
    manifest = json.loads((folder / "bundle.json").read_text()) | changes
    manifest["files"] = {name: _sha256((folder / name).read_bytes()) for name in manifest["files"]}
    manifest["digest"] = _manifest_digest(manifest)
    (folder / "bundle.json").write_text(json.dumps(manifest))


def test_a_saved_bundle_answers_as_the_model_did(bundle_folder, imagenet):
    loaded = load_bundle(bundle_folder)
    assert loaded.model.classes == ["ant", "bee", "flamingo"]
    assert loaded.provenance.run_id == "0" * 32
    assert loaded.provenance.version is None
    assert loaded.model.geometry == imagenet.geometry
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert not any(m.training for m in loaded.model.modules())
    x = torch.randn(2, 3, 224, 224)
    rows = [imagenet.classes.index(name) for name in loaded.model.classes]
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(x), imagenet(x)[:, rows], atol=1e-5, rtol=1e-5)


def test_the_best_methods_are_kept_and_those_that_are_not_whole_are_refused(complete_folder, tmp_path):
    (best,) = load_bundle(complete_folder).best_methods
    assert (best.method, best.block, str(best)) == ("grad_cam", "top", "grad_cam at top")
    folder = Path(shutil.copytree(complete_folder, tmp_path / "copy"))
    resign(folder, best_methods=[{"question": "Which?", "method": "rise"}])
    with pytest.raises(BundleError, match=r"choice of a method .* is not complete"):
        load_bundle(folder)


def test_the_folder_holds_no_pickle_and_nothing_else(bundle_folder):
    assert sorted(path.name for path in bundle_folder.iterdir()) == [
        "bundle.json",
        "probe.png",
        "weights.safetensors",
    ]


def test_saving_twice_gives_the_same_bytes(bundle_folder, tmp_path):
    model = load_bundle(bundle_folder).model
    for name in ("a", "b"):
        save_bundle(model, tmp_path / name, name="three")
    for file in ("bundle.json", "weights.safetensors", "probe.png"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    with pytest.raises(BundleError, match="never overwritten"):
        save_bundle(model, tmp_path / "a", name="three")


@pytest.mark.parametrize("file", ["weights.safetensors", "probe.png", "bundle.json"])
def test_one_flipped_bit_is_found(copy, file):
    data = bytearray((copy / file).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / file).write_bytes(data)
    with pytest.raises(BundleError, match=file.split(".")[0]):
        load_bundle(copy)


@pytest.mark.parametrize("file", ["weights.safetensors", "probe.png", "bundle.json"])
def test_a_missing_or_cut_file_is_named(copy, file):
    (copy / file).write_bytes((copy / file).read_bytes()[:40])
    with pytest.raises(BundleError, match=file.split(".")[0]):
        load_bundle(copy)
    (copy / file).unlink()
    with pytest.raises(BundleError, match=file):
        load_bundle(copy)


def poison(state: dict, how: str) -> dict:
    key = "classifier.1.weight"
    if how == "nan":
        state[key][0, 0] = float("nan")
    elif how == "shape":
        state[key] = state[key][:2].clone()
    elif how == "dtype":
        state[key] = state[key].half()
    elif how == "name":
        state["classifier.1.wight"] = state.pop(key)
    elif how == "values":
        state[key] = state[key] * 1.01
    return state


@pytest.mark.parametrize(
    ("how", "reason"),
    [("nan", "not finite"), ("shape", "needs"), ("dtype", "needs"), ("name", "names"), ("values", "probe")],
)
def test_rightly_signed_but_wrong_weights_are_refused(copy, how, reason):
    save_file(poison(load_file(copy / "weights.safetensors"), how), copy / "weights.safetensors")
    resign(copy)
    with pytest.raises(BundleError, match=reason):
        load_bundle(copy)


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 99},
        {"backbone": "resnet999"},
        {"cam_block": "nowhere"},
        {"classes": ["ant", "ant", "bee"]},
        {"classes": ["ant", "bee"]},
        {"classes": []},
        {"geometry": {"resize": 1}},
        {"probe": {"file": "probe.png", "logits": [0.0, 0.0, 0.0]}},
        {"probe": {}},
        {"probe": {"file": "probe.png", "logits": ["a", "b", "c"]}},
        {"classes": [["ant"], ["bee"], ["wasp"]]},
        {"classes": ["ant", "bee", "\ud800"]},
        {"metrics": None},
    ],
    ids=str,
)
def test_a_lying_manifest_is_refused(copy, changes):
    resign(copy, **changes)
    with pytest.raises(BundleError):
        load_bundle(copy)


def replace_text(folder: Path, before: str, after: str) -> None:
    """Change the manifest's own text, and sign it as it then reads."""
    path = folder / "bundle.json"
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after, 1))


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ('"name": "three"', '"name": "\\ud800"', "bundle.json: 'name' has a character that is half of one"),
        ('"name": "three"', '"name": "a\\u0000b"', "bundle.json: 'name' has a control character"),
        ('"name": "three"', '"name": "a\\u001b[31mb"', "control character"),
        ('"val_accuracy": 0.9', '"val_accuracy": NaN', "NaN is no number"),
        ('"val_accuracy": 0.9', '"val_accuracy": -Infinity', "-Infinity is no number"),
        ('"val_accuracy": 0.9', '"val_accuracy": 1e999', "'val_accuracy' is beyond what a float can hold"),
        ('"val_accuracy": 0.9', f'"val_accuracy": 1{"0" * 400}', "beyond what a float can hold"),
        ('"val_accuracy": 0.9', f'"val_accuracy": 1{"0" * 9999}', "bundle.json is not JSON"),
        (
            '"val_accuracy": 0.9',
            '"a\\u0007": 0.9',
            "A name in bundle.json: 'metrics' has a control character",
        ),
        ('"training": {}', f'"training": {"[" * 60}{"]" * 60}', "nested more than 32 deep"),
        ('"training": {}', f'"training": {"[" * 100_000}{"]" * 100_000}', "nested more than 32 deep"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_what_could_not_be_answered_as_json_is_refused_by_its_place(copy, before, after, says):
    replace_text(copy, before, after)
    began = time.monotonic()
    with pytest.raises(BundleError, match=re.escape(says)):
        load_bundle(copy)
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("file", ["weights.safetensors", "probe.png", "bundle.json"])
@pytest.mark.parametrize("kind", ["fifo", "endless", "folder"])
def test_what_is_no_file_or_never_ends_is_refused_by_name(copy, file, kind):
    path = copy / file
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    began = time.monotonic()
    with pytest.raises(BundleError, match=re.escape(file)):
        load_bundle(copy)
    assert time.monotonic() - began < 2


@pytest.mark.soak
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"classes": [f"class {n}" for n in range(1_000_000)]}, "1,000,000 classes; the limit is 100,000"),
        ({"classes": [f"class {n}" for n in range(90_000)]}, "weights.safetensors has 'classifier"),
        ({"geometry": "huge"}, "at most 1024 pixels"),
    ],
    ids=["a million classes", "classes without weights", "a huge input"],
)
def test_a_manifest_that_would_cost_gigabytes_is_refused_before_it_does(copy, changes, says):
    if changes.get("geometry") == "huge":
        own = json.loads((copy / "bundle.json").read_text())["geometry"]
        changes = {"geometry": own | {"resize": 2048, "crop_height": 2048, "crop_width": 2048}}
    resign(copy, **changes)
    script = (
        "import resource, sys; from models.bundle import load_bundle; from models.errors import BundleError\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: load_bundle(sys.argv[1])\n"
        "except BundleError as error: print(str(error)[:200])\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, copy], capture_output=True, text=True, check=True)
    reason, grown = done.stdout.strip().splitlines()
    print(f"{reason}: memory grew by {grown} MB")
    assert says in reason
    assert int(grown) < 256


def test_another_preprocessing_is_found_by_the_probe(copy):
    geometry = json.loads((copy / "bundle.json").read_text())["geometry"]
    resign(copy, geometry={**geometry, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]})
    with pytest.raises(BundleError, match="probe"):
        load_bundle(copy)


class Bomb:
    def __reduce__(self):
        return (os.system, ("touch exploded",))


@pytest.mark.parametrize("how", ["pickle", "torch", "header"])
def test_hostile_weights_run_no_code(copy, how, monkeypatch):
    monkeypatch.chdir(copy)
    path = copy / "weights.safetensors"
    if how == "pickle":
        path.write_bytes(pickle.dumps(Bomb()))
    elif how == "torch":
        torch.save({"x": Bomb()}, path)
    else:
        path.write_bytes((2**60).to_bytes(8, "little") + b'{"__metadata__":{}}')
    resign(copy)
    with pytest.raises(BundleError, match="safetensors"):
        load_bundle(copy)
    assert not (copy / "exploded").exists()


def test_weights_that_are_not_finite_are_never_saved(bundle_folder, tmp_path):
    model = load_bundle(bundle_folder).model
    with torch.no_grad():
        model.classifier[1].bias[0] = float("inf")
    with pytest.raises(BundleError, match="finite"):
        save_bundle(model, tmp_path / "bad", name="bad")
    assert list(tmp_path.iterdir()) == []


def test_a_kill_while_saving_leaves_a_whole_bundle_or_none(bundle_folder, tmp_path):
    script = (
        "import sys, itertools; from pathlib import Path\n"
        "from models.bundle import load_bundle, save_bundle\n"
        "model = load_bundle(Path(sys.argv[1])).model; print('go', flush=True)\n"
        "for i in itertools.count(): save_bundle(model, Path(sys.argv[2]) / f'b{i}', name='x')\n"
    )
    for delay_s in (0.05, 0.21):
        out = tmp_path / str(delay_s)
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(bundle_folder), str(out)], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"go\n"
        until = time.monotonic() + 60
        while not (out / "b0").is_dir() and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(delay_s)
        process.send_signal(signal.SIGKILL)
        process.wait()
        saved = list(out.glob("b*"))
        assert saved, "it was killed while saving, not before"
        for folder in saved:
            load_bundle(folder)
