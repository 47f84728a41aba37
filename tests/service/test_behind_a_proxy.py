"""The service below a path of a proxy: a real nginx, set up as the how-to page says, and a browser."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import expect

from service.client import Client
from tests.support.serving import PROJECT, free_port

PAGE = PROJECT / "docs/how-to/deploy-behind-a-proxy.md"
NGINX = """
{user} daemon off; error_log stderr warn; pid {folder}/pid;
events {{ }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  server {{
    listen 127.0.0.1:{port};
{location}
  }}
}}
"""


@pytest.fixture(scope="module", params=["taken off", "left on"])
def proxied(request, start, bundle_folder, samples_folder, tmp_path_factory) -> Iterator[str]:
    """The address below the proxy's path, which the proxy takes off or leaves on what it passes."""
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if nginx is None:
        pytest.skip("needs nginx: apt-get install nginx-light")
    served = start(bundle_folder, root_path="/lucida", samples=str(samples_folder))
    (location,) = re.findall(r"```nginx\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert "proxy_pass http://127.0.0.1:3000/;" in location
    target = served.url + ("/" if request.param == "taken off" else "")
    folder, port = tmp_path_factory.mktemp("nginx"), free_port()
    # Its processes give up root's rights otherwise, and could not write to the folder.
    user = "user root;" if os.geteuid() == 0 else ""
    configuration = folder / "nginx.conf"
    location = location.replace("http://127.0.0.1:3000/", target)
    configuration.write_text(NGINX.format(folder=folder, port=port, location=location, user=user))
    process = subprocess.Popen([nginx, "-c", configuration, "-p", folder], stderr=subprocess.PIPE)
    url = f"http://127.0.0.1:{port}/lucida"
    while True:
        try:
            httpx.get(f"{url}/livez", trust_env=False)
            break
        except httpx.TransportError:
            assert process.poll() is None, process.stderr.read().decode()
            time.sleep(0.05)
    yield url
    process.terminate()
    process.wait()


@pytest.fixture(scope="module")
def samples_folder(photos, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    shutil.copy(sorted((photos / "hymenoptera/val/bees").glob("*.jpg"))[0], folder / "bee.jpg")
    return folder


def test_the_client_the_jobs_and_the_document_work_below_the_path(proxied, bee):
    with Client(proxied) as client:
        assert client.predict(bee).predictions
        job = client.submit("predict", [bee])
        assert [*client.watch(job.id)][-1].state == "done"
    files = {"image": ("b.jpg", bee, "image/jpeg")}
    submitted = httpx.post(f"{proxied}/jobs/predict", files=files, trust_env=False)
    where = httpx.URL(proxied).join(submitted.headers["location"])
    assert where.path.startswith("/lucida/jobs/")
    assert httpx.get(where, trust_env=False).json()["id"] == submitted.json()["id"]
    document = httpx.get(f"{proxied}/openapi.json", trust_env=False).json()
    assert document["servers"] == [{"url": "/lucida"}]


def test_the_page_asks_everything_below_the_path(proxied, browser):
    page = browser.new_page()
    failed: list[str] = []
    page.on("response", lambda answer: failed.append(answer.url) if answer.status >= 400 else None)

    def below(url: str) -> bool:
        return url.startswith((f"{proxied}/", "data:", "blob:"))

    page.on("request", lambda request: None if below(request.url) else failed.append(request.url))
    page.goto(f"{proxied}/")
    page.get_by_role("button", name="Try the sample").first.click()
    expect(page.locator("#scores")).to_contain_text("%")
    assert failed == []
