"""The service beside its own predictor alone, and beside two servers of others: `make bench-service`.

All servers are up together and driven in turn, round by round, by the same client on the same machine; each
figure is the median over the rounds. Cores are noisy and shared with the client: read ratios.

LitServe with pytorch-grad-cam and BentoML with Captum are written as their own examples have it
(benchmarks/peers/) and answer with an overlay of the 224 x 224 crop as a PNG; ours with JSON (explain), or
with an overlay of the whole picture at its own size as a JPEG (heatmap).
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import PIL.Image

HERE = Path(__file__).parent
PROJECT = HERE.parent
PEERS = PROJECT / ".peers" / "service"
CLIENTS = (1, 8, 32)
BIN = Path(sys.executable).parent


@dataclass
class Way:
    """One thing that is asked of one server."""

    name: str
    port: int
    path: str
    part: str = "image"
    rates: dict[int, list[float]] = field(default_factory=dict)
    times: dict[int, list[float]] = field(default_factory=dict)

    def rate(self, clients: int) -> float:
        """Answers a second, median of the rounds."""
        return statistics.median(self.rates[clients])


def photograph() -> bytes:
    """Return a picture of 640 x 480 with the detail of a photograph, as a JPEG."""
    rng = np.random.default_rng(0)
    coarse = PIL.Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    coarse.resize((640, 480), PIL.Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def drive(way: Way, picture: bytes, clients: int, seconds: float) -> tuple[float, list[float]]:
    """Rate and times of answers to so many clients that each ask again as soon as they are answered."""
    form = httpx.Request("POST", f"http://x{way.path}", files={way.part: ("p.jpg", picture, "image/jpeg")})
    body = form.read()
    request = (
        f"POST {way.path} HTTP/1.1\r\nHost: x\r\nContent-Type: {form.headers['content-type']}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body
    times: list[float] = []

    async def client(end: float) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", way.port)
        while time.perf_counter() < end:
            start = time.perf_counter()
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            if b" 200 " not in head.split(b"\r\n")[0]:
                raise SystemExit(f"{way.name} answered {head[:200]!r}")
            length = next(
                int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")
            )
            await reader.readexactly(length)
            times.append(time.perf_counter() - start)
            if b"\r\nconnection: close" in head.lower():
                writer.close()
                reader, writer = await asyncio.open_connection("127.0.0.1", way.port)
        writer.close()

    async def run() -> float:
        began = time.perf_counter()
        await asyncio.gather(*(client(began + seconds) for _ in range(clients)))
        return len(times) / (time.perf_counter() - began)

    return asyncio.run(run()), times


def in_process(folder: str, backend: str, precision: str, clients: int, seconds: float) -> None:
    """Print the rate of the predictor alone, asked by threads of this process."""
    from service.inference.predictor import Predictor
    from service.operations.registry import OPERATIONS
    from service.settings import Settings

    predictor = Predictor(Path(folder), Settings(engine=backend, precision=precision))  # type: ignore[arg-type]
    operation, image = OPERATIONS["explain"], photograph()
    form = operation.form()
    operation.run(predictor, image, form)
    end = time.perf_counter() + seconds
    done = []

    def ask(_: int) -> None:
        while time.perf_counter() < end:
            operation.run(predictor, image, form).model_dump_json()
            done.append(1)

    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(ask, range(clients)))
    print(json.dumps(len(done) / (time.perf_counter() - began)))


def rate_alone(folder: str, backend: str, precision: str, clients: int, seconds: float) -> float:
    """Return the rate of predictors asked by threads, in as many processes as the service has workers."""
    processes = min(cores(), clients)
    # -P: this file must not be taken for the package of its name.
    command = [sys.executable, "-P", __file__, "--in-process", folder, backend, precision]
    command += [str(clients // processes), str(seconds)]
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
        )
        for _ in range(processes)
    ]
    return sum(float(process.communicate()[0].splitlines()[-1]) for process in running)


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def started(command: list[str], port: int, probe: str, **variables: str) -> subprocess.Popen[bytes]:
    """Yield a server that answers on its port."""
    environment = os.environ | {"BENTOML_DO_NOT_TRACK": "true", **variables}
    process = subprocess.Popen(
        command, env=environment, cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    for _ in range(600):
        if process.poll() is not None:
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}.")
        try:
            if httpx.get(f"http://127.0.0.1:{port}{probe}", trust_env=False).status_code == 200:
                return process
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise SystemExit(f"{' '.join(command)} is not ready after two minutes.")


def make_bundle(folder: Path, backbone: str) -> None:
    """Save a model with random weights, on which speed does not depend."""
    from models.bundle import save_bundle
    from models.networks.transfer_model import TransferModel

    save_bundle(TransferModel.create(backbone, ["a", "b", "c"], pretraining="none"), folder, name="bench")


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--no-peers", action="store_true", help="without the servers of others")
    parser.add_argument("--in-process", nargs=5, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.in_process:
        folder, backend, precision, clients, seconds = asked.in_process
        in_process(folder, backend, precision, int(clients), float(seconds))
        return
    peers = not asked.no_peers and asked.backbone == "resnet18"
    if peers and not (PEERS / "litserve").is_dir():
        listed = HERE / "peers" / "service.txt"
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(PEERS)]
        subprocess.run([*command, "-r", str(listed)], check=True)
    with tempfile.TemporaryDirectory() as aside:
        compare(asked.backbone, asked.rounds, asked.seconds, peers, Path(aside))


def compare(backbone: str, rounds: int, seconds: float, peers: bool, aside: Path) -> None:
    """Start everything, drive it in turn, print the figures."""
    folder, picture = aside / "bundle", photograph()
    make_bundle(folder, backbone)
    engines = {
        "eager": ("eager", "fp32"),
        "openvino": ("openvino", "fp32"),
        "openvino bf16": ("openvino", "bf16"),
    }
    ways: list[Way] = []
    servers: list[subprocess.Popen[bytes]] = []
    alone: dict[tuple[str, int], list[float]] = {}
    try:
        for n, (name, (backend, precision)) in enumerate(engines.items()):
            port = 3410 + n
            servers.append(
                started(
                    [str(BIN / "bentoml"), "serve", ".", "--port", str(port)], port, "/readyz",
                    LUCIDA_BUNDLE=str(folder), LUCIDA_ENGINE=backend, LUCIDA_PRECISION=precision,
                    LUCIDA_JOBS=str(aside / f"jobs{n}"), LUCIDA_LOG_REQUESTS="false",
                    BENTOML_HOME=str(aside / "bentoml"),
                )
            )  # fmt: skip
            ways += [
                Way(f"ours, {name}: {verb}", port, f"/{verb}") for verb in ("predict", "explain", "heatmap")
            ]
        if peers:
            paths = os.pathsep.join([str(PEERS), os.environ.get("PYTHONPATH", "")])
            script = str(HERE / "peers" / "litserve_grad_cam.py")
            servers.append(started([sys.executable, script, "3420"], 3420, "/health", PYTHONPATH=paths))
            ways.append(Way("LitServe + pytorch-grad-cam", 3420, "/predict", "request"))
            command = [str(BIN / "bentoml"), "serve", "bentoml_captum:Explained", "--port", "3421"]
            servers.append(
                started(
                    [*command, "--working-dir", str(HERE / "peers")], 3421, "/readyz",
                    BENTOML_HOME=str(aside / "bentoml"),
                )
            )  # fmt: skip
            ways.append(Way("BentoML + Captum", 3421, "/explain"))
        for way in ways:
            drive(way, picture, 4, 1.0)
        for turn in range(rounds):
            for clients in CLIENTS:
                for way in ways:
                    rate, times = drive(way, picture, clients, seconds)
                    way.rates.setdefault(clients, []).append(rate)
                    way.times.setdefault(clients, []).extend(times)
                for name, (backend, precision) in engines.items():
                    if clients <= 8:
                        rate = rate_alone(str(folder), backend, precision, clients, seconds)
                        alone.setdefault((name, clients), []).append(rate)
            print(f"round {turn + 1} of {rounds}", file=sys.stderr, flush=True)
    finally:
        for server in servers:
            os.killpg(server.pid, signal.SIGTERM)
        for server in servers:
            server.wait(30)
    report(backbone, ways, alone, engines)


def report(backbone: str, ways: list[Way], alone: dict[tuple[str, int], list[float]], engines: dict) -> None:
    """Rates, percentiles and ratios."""
    print(f"{backbone}, a picture of 640 x 480, {os.cpu_count()} cores with the client on them\n")
    print(f"{'':34}" + "".join(f"{f'{clients} clients':>28}" for clients in CLIENTS))
    print(f"{'':34}" + f"{'/s    p50    p99 ms':>28}" * len(CLIENTS))
    for way in ways:
        cells = [
            f"{way.rate(clients):>13.1f}{np.percentile(way.times[clients], 50) * 1000:>7.0f}"
            f"{np.percentile(way.times[clients], 99) * 1000:>8.0f}"
            for clients in CLIENTS
        ]
        print(f"{way.name:34}" + "".join(cells))
    for (name, clients), rates in sorted(alone.items()):
        print(f"{f'without a service, {name}':34}{clients} threads: {statistics.median(rates):.1f}/s")
    print()
    found = {way.name: way for way in ways}
    others = [way for way in ways if not way.name.startswith("ours")]
    for name in engines:
        explain, predict = found[f"ours, {name}: explain"], found[f"ours, {name}: predict"]
        print(f"{name}:")
        for clients in CLIENTS:
            beside = explain.rate(clients) / predict.rate(clients)
            line = f"  {clients:>2} clients: explain : predict {beside:.2f}"
            if (name, clients) in alone:
                share = explain.rate(clients) / statistics.median(alone[name, clients])
                line += f", explain : without a service {share:.2f}"
            for other in others:
                heatmap = found[f"ours, {name}: heatmap"].rate(clients) / other.rate(clients)
                beside = explain.rate(clients) / other.rate(clients)
                line += f", : {other.name} {beside:.1f} (heatmap {heatmap:.1f})"
            print(line)


if __name__ == "__main__":
    main()
