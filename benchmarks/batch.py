"""A batch job beside the scripts that people write: pictures a second on real JPEGs, in one run.

python benchmarks/batch.py PICTURES [--count 1000] [--rounds 3] [--precision fp32] [--ray]
python benchmarks/batch.py PICTURES --memory 20000

The scripts explain the top class of each picture by Grad-CAM and write an overlay and a row of CSV: one with
pytorch-grad-cam, one with Captum and matplotlib, one picture at a time, as their tutorials do. Ours does the
same and more (figures, Parquet, the page), first as the loop of one loaded job and then as the whole command.
With --ray, the loop on a local Ray cluster of as many workers is timed beside it; with --memory, the peak of
a job of so many pictures is held against that of a hundred.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import torch

CLASSES = ("ant", "bee", "flamingo", "hummingbird", "goldfish")


def main() -> None:
    """Print the rates and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--count", type=int, default=1000, help="pictures of the whole command")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scripts", type=int, default=60, help="pictures that the scripts are timed on")
    parser.add_argument("--precision", default="auto", help="of the engine: auto, fp32, bf16 or int8")
    parser.add_argument("--ray", action="store_true", help="time a local Ray cluster too")
    parser.add_argument("--memory", type=int, help="pictures of the long job whose peak is measured")
    options = parser.parse_args()
    if options.memory:
        compare_peaks(options.pictures, options.memory)
        return
    precision = options.precision
    with tempfile.TemporaryDirectory() as aside:
        folder = Path(aside)
        source = lay_out(options.pictures, folder / "pictures", options.count)
        long = lay_out(options.pictures, folder / "long", 3 * options.count)
        bundle = make_bundle(folder / "bundle")
        files = sorted(source.iterdir())
        ways: dict[str, Callable[[], float]] = {
            "pytorch-grad-cam script": lambda: grad_cam_script(files[: options.scripts], folder),
            "Captum and matplotlib script": lambda: captum_script(files[: options.scripts], folder),
            "engine alone": lambda: engine_alone(bundle, files[: 4 * options.scripts], precision),
            "loop": lambda: loop(bundle, long, folder, precision),
            "command": lambda: command(bundle, source, folder, precision),
        }
        if options.ray:
            ways["loop on Ray"] = lambda: loop(bundle, long, folder, precision, on_ray=True)
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(options.rounds):
            for name, way in ways.items():
                rates[name].append(way())
                print(f"round {number + 1}, {name}: {rates[name][-1]:.1f} pictures/s", flush=True)
    report(rates)


def report(rates: dict[str, Sequence[float]]) -> None:
    """Print medians, and ratios of the same round."""
    for name, values in rates.items():
        print(f"{name}: {statistics.median(values):.1f} pictures/s")
    for ours in ("loop", "command"):
        for theirs in ("pytorch-grad-cam script", "Captum and matplotlib script", "engine alone"):
            ratio = statistics.median(a / b for a, b in zip(rates[ours], rates[theirs], strict=True))
            print(f"{ours} : {theirs} = {ratio:.2f}")
    if "loop on Ray" in rates:
        ratio = statistics.median(a / b for a, b in zip(rates["loop on Ray"], rates["loop"], strict=True))
        print(f"loop on Ray : loop = {ratio:.2f}")


def lay_out(pictures: Path, folder: Path, count: int) -> Path:
    """Return a folder of so many JPEGs, the given ones as often as it takes."""
    files = sorted(path for path in pictures.rglob("*.jpg"))
    folder.mkdir()
    for number in range(count):
        os.link(files[number % len(files)], folder / f"{number:06d}.jpg")
    return folder


def make_bundle(folder: Path) -> Path:
    """Save efficientnet_lite0 with five of its own classes."""
    from models.bundle import save_bundle
    from models.networks.transfer_model import TransferModel

    whole = TransferModel.imagenet("efficientnet_lite0")
    model = TransferModel.create("efficientnet_lite0", list(CLASSES))
    rows = [next(n for n, name in enumerate(whole.classes) if name.lower() == label) for label in CLASSES]
    with torch.no_grad():
        model.classifier[1].weight.copy_(whole.classifier[1].weight[rows])
        model.classifier[1].bias.copy_(whole.classifier[1].bias[rows])
    save_bundle(model, folder, name="bench")
    return folder


def network_and_transform(bundle: Path):
    """Return the uncut network and the transform of a script."""
    from torchvision import transforms

    from models.bundle import load_bundle

    model = load_bundle(bundle).model
    geometry = model.geometry
    transform = transforms.Compose(
        [
            transforms.Resize(geometry.resize),
            transforms.CenterCrop(geometry.crop_height),
            transforms.ToTensor(),
            transforms.Normalize(geometry.mean, geometry.std),
        ]
    )
    return model.requires_grad_(True), transform


def grad_cam_script(files: Sequence[Path], folder: Path) -> float:
    """Time the loop of pytorch-grad-cam's README; return pictures a second."""
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.image import show_cam_on_image

    torch.set_num_threads(os.cpu_count() or 1)
    model, transform = network_and_transform(folder / "bundle")
    cam = GradCAM(model=model, target_layers=[model.block(model.cam_block)])
    start = time.perf_counter()
    with (folder / "script.csv").open("w") as file:
        writer = csv.writer(file)
        for path in files:
            image = PIL.Image.open(path).convert("RGB")
            x = transform(image).unsqueeze(0)
            with torch.no_grad():
                scores = model(x).softmax(1)[0]
            grayscale = cam(input_tensor=x, targets=None)[0]
            small = np.asarray(image.resize((224, 224)), np.float32) / 255
            overlay = show_cam_on_image(small, grayscale, use_rgb=True)
            PIL.Image.fromarray(overlay).save(folder / "script.jpg")
            writer.writerow([path.name, int(scores.argmax()), float(scores.max())])
    return len(files) / (time.perf_counter() - start)


def captum_script(files: Sequence[Path], folder: Path) -> float:
    """Time the loop of Captum's tutorial with its drawing; return pictures a second."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    from captum.attr import LayerAttribution, LayerGradCam

    torch.set_num_threads(os.cpu_count() or 1)
    model, transform = network_and_transform(folder / "bundle")
    layer = LayerGradCam(model, model.block(model.cam_block))
    start = time.perf_counter()
    for path in files:
        image = PIL.Image.open(path).convert("RGB")
        x = transform(image).unsqueeze(0)
        with torch.no_grad():
            top = int(model(x).argmax())
        values = LayerAttribution.interpolate(layer.attribute(x, target=top), (224, 224))
        figure, axes = plt.subplots()
        axes.imshow(image.resize((224, 224)))
        axes.imshow(values[0, 0].detach().numpy(), alpha=0.5, cmap="jet")
        axes.axis("off")
        figure.savefig(folder / "captum.png")
        plt.close(figure)
    return len(files) / (time.perf_counter() - start)


def engine_alone(bundle: Path, files: Sequence[Path], precision: str) -> float:
    """Time the explanations of prepared tensors in one process a core, without input and output."""
    code = (
        "import sys, time; from pathlib import Path; import torch; torch.set_num_threads(1)\n"
        "from models.bundle import load_bundle; from models.explainer import Explainer\n"
        "from models.images.decode import read_image; from pipelines.batch.engine import make_explainer\n"
        "explainer = make_explainer(load_bundle(sys.argv[1]), 'none', threads=1, precision=sys.argv[2])\n"
        "images = [explainer.prepare(read_image(path)) for path in sys.argv[3:]]\n"
        "explainer.explain_batch(images[:16])\n"
        "start = time.perf_counter()\n"
        "for n in range(0, len(images), 16): explainer.explain_batch(images[n:n + 16])\n"
        "print(len(images) / (time.perf_counter() - start))\n"
    )
    cores = os.cpu_count() or 1
    parts = [files[n::cores] for n in range(cores)]
    begun = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(bundle), precision, *map(str, part)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for part in parts
    ]
    return sum(float(process.communicate()[0]) for process in begun)


def loop(bundle: Path, source: Path, folder: Path, precision: str, *, on_ray: bool = False) -> float:
    """Time a job from its first part to its last, without the start of its processes and the page."""
    from models.bundle import load_bundle
    from pipelines.batch.engine import make_explainer
    from pipelines.batch.job import plan_job
    from pipelines.batch.local import run_local

    out = Path(tempfile.mkdtemp(dir=folder)) / "out"
    loaded = load_bundle(bundle)
    explainer = make_explainer(loaded, out, precision=precision)
    moments: list[tuple[float, int]] = []

    def note(what: str, done: int, total: int) -> None:
        moments.append((time.perf_counter(), done))

    if on_ray:
        from pipelines.batch.ray import run_on_ray

        run_on_ray(plan_job(source, explainer), loaded, out, progress=note)
    else:
        run_local(plan_job(source, explainer), loaded, out, explainer=explainer, progress=note)
    (begun, first), (ended, last) = moments[0], moments[-1]
    return (last - first) / (ended - begun)


def command(bundle: Path, source: Path, folder: Path, precision: str) -> float:
    """Time the whole command, from its start to its end."""
    out = Path(tempfile.mkdtemp(dir=folder)) / "out"
    words = explain_words(source, bundle, out, "--precision", precision)
    start = time.perf_counter()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    return len(list(source.iterdir())) / (time.perf_counter() - start)


def explain_words(source: Path, bundle: Path, out: Path, *more: str) -> list[str | Path]:
    """Return the words of the command."""
    begin = [sys.executable, "-m", "pipelines.cli.app", "explain"]
    return [*begin, source, "--bundle", bundle, "--out", out, *more]


def compare_peaks(pictures: Path, count: int) -> None:
    """Print the most memory that the command and its workers hold for a hundred pictures and for many."""
    with tempfile.TemporaryDirectory() as aside:
        folder = Path(aside)
        bundle = make_bundle(folder / "bundle")
        peaks = []
        for size in (100, count):
            source = lay_out(pictures, folder / f"pictures-{size}", size)
            peaks.append(
                peak_memory(explain_words(source, bundle, folder / f"out-{size}", "--processes", "2"))
            )
            print(f"{size} pictures: {peaks[-1] / 1e6:.0f} MB at most", flush=True)
        print(f"{count} : 100 = {peaks[1] / peaks[0]:.2f}")


def peak_memory(words: Sequence[str | Path]) -> int:
    """Run a command; return the most bytes that it and its descendants hold, what they share once."""
    import psutil

    most = 0
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        while running.poll() is None:
            held = 0
            try:
                own = psutil.Process(running.pid)
                for process in (own, *own.children(recursive=True)):
                    held += process.memory_full_info().pss
            except psutil.Error:
                continue
            most = max(most, held)
            time.sleep(0.2)
    if running.returncode:
        raise SystemExit(f"The command ended with {running.returncode}.")
    return most


if __name__ == "__main__":
    main()
