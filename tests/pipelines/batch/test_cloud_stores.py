"""The same job on Google's store and on Azure's, as emulators that run as processes of their own."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from contextlib import contextmanager

import httpx
import pytest

from models.bundle import load_bundle
from models.errors import ConfigError
from models.explainer import Explainer
from pipelines.batch.job import plan_job
from pipelines.batch.local import run_local
from pipelines.batch.sinks import read_rows
from pipelines.batch.store import open_store
from tests.support.serving import free_port

AZURITE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""The public key of every emulator's one account."""


@contextmanager
def running(command, port, log):
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{port}/", timeout=2)
                break
            except httpx.HTTPError:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
        yield
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def google(tmp_path, monkeypatch):
    pytest.importorskip("gcp_storage_emulator", reason="needs gcp-storage-emulator, of the extra 'dev'")
    port = free_port()
    code = "from gcp_storage_emulator.__main__ import main; main()"
    command = [sys.executable, "-c", code, "start", "--host", "127.0.0.1", "--port", str(port), "--in-memory",
               "--default-bucket", "pictures"]  # fmt: skip
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    with running(command, port, tmp_path / "google.log"):
        yield "gs://pictures"


@pytest.fixture
def azure(tmp_path, monkeypatch):
    program = shutil.which("azurite-blob")
    if program is None:
        pytest.skip("needs Azure's emulator: npm install --global azurite")
    port = free_port()
    command = [program, "--blobPort", str(port), "--location", str(tmp_path / "azure"), "--silent",
               "--skipApiVersionCheck"]  # fmt: skip
    monkeypatch.setenv(
        "AZURE_STORAGE_CONNECTION_STRING",
        f"DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;AccountKey={AZURITE_KEY};"
        f"BlobEndpoint=http://127.0.0.1:{port}/devstoreaccount1;",
    )
    with running(command, port, tmp_path / "azure.log"):
        yield "az://pictures"


@pytest.mark.parametrize("cloud", ["google", "azure"])
def test_pictures_and_results_may_lie_there(cloud, request, butterflies, bundle_folder, tmp_path):
    address = request.getfixturevalue(cloud)
    source = open_store(f"{address}/in")
    files = sorted((butterflies / "val").rglob("*.jpg"))[:12]
    if cloud == "azure":
        # A container is made by its owner, once.
        source._system()[0].create_dir("pictures")
    for number, path in enumerate(files):
        source.write(f"{number:02d}.jpg", path.read_bytes())
    source.write("broken.jpg", b"\xff\xd8\xff no")
    loaded = load_bundle(bundle_folder)
    job = plan_job(f"{address}/in", Explainer(loaded))
    done = run_local(job, loaded, f"{address}/out")
    assert (done.pictures, done.errors) == (13, 1)
    assert run_local(job, loaded, f"{address}/out").resumed == 13
    names = {file.name for file in open_store(f"{address}/out").files()}
    assert {"_SUCCESS", "job.json", "index.html", "rows/part-00000.parquet"} <= names
    assert len([name for name in names if name.startswith("overlays/")]) == 12
    assert not [name for name in names if "owner" in name]
    folder = tmp_path / "in"
    folder.mkdir()
    for number, path in enumerate(files):
        shutil.copy(path, folder / f"{number:02d}.jpg")
    here = run_local(plan_job(folder, Explainer(loaded)), loaded, tmp_path / "out")
    rows = [row for row in read_rows(f"{address}/out") if row["status"] == "ok"]
    assert rows == sorted(read_rows(here.out), key=lambda row: row["path"])


def test_an_address_without_an_account_says_what_is_missing(monkeypatch):
    for name in ("AZURE_STORAGE_CONNECTION_STRING", "AZURE_STORAGE_ACCOUNT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="set AZURE_STORAGE_CONNECTION_STRING or AZURE_STORAGE_ACCOUNT"):
        open_store("az://pictures/in").exists("a")
