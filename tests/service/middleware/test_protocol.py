"""Malformed HTTP, limits on what is read, nothing fetched, nothing open without a key."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest

from service.operations.registry import OPERATIONS

ROUTES = [verb.path for verb in OPERATIONS.values()]


def raw(url: str, content: bytes, *, wait: float = 10.0) -> bytes:
    """What comes back for bytes on a plain socket."""
    host, port = re.fullmatch(r"http://([\d.]+):(\d+)", url).groups()
    with socket.create_connection((host, int(port)), timeout=wait) as line:
        line.sendall(content)
        found = b""
        try:
            while chunk := line.recv(65536):
                found += chunk
                if b"\r\n\r\n" in found and b"error" in found:
                    break
        except (TimeoutError, ConnectionResetError):
            pass
        return found


def form(*parts: bytes, boundary: bytes = b"b") -> bytes:
    return (
        b"".join(b"--" + boundary + b"\r\n" + part + b"\r\n" for part in parts) + b"--" + boundary + b"--\r\n"
    )


def part(disposition: bytes, content: bytes, more: bytes = b"") -> bytes:
    return b"Content-Disposition: " + disposition + more + b"\r\n\r\n" + content


IMAGE = b'form-data; name="image"; filename="x.png"'
BODIES: dict[str, tuple[str, bytes]] = {
    "no boundary": ("multipart/form-data", form(part(IMAGE, b"x"))),
    "empty boundary": ("multipart/form-data; boundary=", form(part(IMAGE, b"x"))),
    "long boundary": ("multipart/form-data; boundary=" + "b" * 5000, b"--" + b"b" * 5000 + b"--"),
    "boundary of other letters": ("multipart/form-data; boundary=zz", form(part(IMAGE, b"x"))),
    "never closed": ("multipart/form-data; boundary=b", form(part(IMAGE, b"x"))[:-8]),
    "nothing": ("multipart/form-data; boundary=b", b""),
    "closing line alone": ("multipart/form-data; boundary=b", b"--b--\r\n"),
    "no name": ("multipart/form-data; boundary=b", form(part(b"form-data", b"x"))),
    "no disposition": ("multipart/form-data; boundary=b", form(b"X-Y: z\r\n\r\nx")),
    "attachment": ("multipart/form-data; boundary=b", form(part(b'attachment; name="image"', b"x"))),
    "huge field": ("multipart/form-data; boundary=b", form(part(b'form-data; name="target"', b"t" * 2_000_000))),
    "many fields": ("multipart/form-data; boundary=b", form(*(part(b'form-data; name="f%d"' % n, b"x") for n in range(5000)))),
    "many files": ("multipart/form-data; boundary=b", form(*(part(IMAGE, b"x") for _ in range(500)))),
    "huge header": ("multipart/form-data; boundary=b", form(part(IMAGE, b"x", b"\r\nX-Big: " + b"y" * 200_000))),
    "many headers": ("multipart/form-data; boundary=b", form(part(IMAGE, b"x", b"\r\nX-A: 1" * 5000))),
    "null in a name": ("multipart/form-data; boundary=b", form(part(b'form-data; name="ima\0ge"', b"x"))),
    "not utf-8": ("multipart/form-data; boundary=b", form(part(b'form-data; name="target"', b"\xff\xfe"), part(IMAGE, b"x"))),
    "odd charset": ("multipart/form-data; boundary=b; charset=unicode_escape", form(part(b'form-data; name="\\ud800"', b"x"), part(IMAGE, b"x"))),
    "unknown charset": ("multipart/form-data; boundary=b; charset=klingon", form(part(b'form-data; name="target"', b"x"), part(IMAGE, b"x"))),
    "nested multipart": ("multipart/form-data; boundary=b", form(part(IMAGE, form(part(IMAGE, b"x"), boundary=b"c"), b"\r\nContent-Type: multipart/mixed; boundary=c"))),
    "base64 part": ("multipart/form-data; boundary=b", form(part(IMAGE, b"aGVsbG8=", b"\r\nContent-Transfer-Encoding: base64"))),
    "pickle": ("application/vnd.bentoml+pickle", b"\x80\x04cos\nsystem\n(S'id'\ntR."),
    "octets": ("application/octet-stream", b"\x89PNG"),
    "json": ("application/json", b'{"image": "http://127.0.0.1:1/x"}'),
    "json that lies": ("multipart/form-data; boundary=b", b'{"image": "x"}'),
    "urlencoded": ("application/x-www-form-urlencoded", b"image=http://127.0.0.1:1/x"),
    "text": ("text/plain", b"image"),
    "picture": ("image/png", b"\x89PNG"),
    "no type": ("", b"x"),
    "type of rubbish": ("\x01;;;=", b"x"),
    "target twice": ("multipart/form-data; boundary=b", form(part(b'form-data; name="target"', b"a"), part(b'form-data; name="target"', b"b"), part(IMAGE, b"x"))),
    "file in a text field": ("multipart/form-data; boundary=b", form(part(b'form-data; name="target"; filename="t"', b"a"), part(IMAGE, b"x"))),
}  # fmt: skip


@pytest.mark.parametrize("name", BODIES)
def test_malformed_bodies_get_one_sentence(service, name):
    kind, body = BODIES[name]
    # A job takes any number of files, and says of each in its answer that it is no picture.
    jobs = () if name in {"many files", "nested multipart", "base64 part"} else ("/jobs/explain",)
    for route in (*ROUTES, *jobs):
        headers = {"content-type": kind.encode("latin-1")} if kind else {}
        reply = httpx.post(
            f"{service.url}{route}", content=body, headers=headers, timeout=30, trust_env=False
        )
        assert 400 <= reply.status_code < 500, (route, reply.status_code, reply.text)
        assert set(reply.json()) == {"error", "kind"}, route
        assert reply.json()["error"].endswith("."), route


LINES = [
    b"GARBAGE\r\n\r\n",
    b"POST /predict HTTP/1.1\r\n\r\n",
    b"POST /predict HTTP/9.9\r\nHost: localhost\r\n\r\n",
    b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
    b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999999999\r\n\r\n",
    b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST /predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: " + b"y" * 200_000 + b"\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET /../../etc/passwd HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    b"GET /web/../app.py HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    b"GET /web/%2e%2e/app.py HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    b"GET /samples/..%2f..%2fbundle.json HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    b"GET /jobs/..%2fkeeper.lock HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
]


@pytest.mark.parametrize("number", range(len(LINES)))
def test_malformed_http_is_refused_and_harms_nobody(service, number, corpus):
    found = raw(service.url, LINES[number], wait=2.0)
    assert not re.match(rb"HTTP/1.1 [25]", found), found[:200]
    for leak in (b"Traceback", b"site-packages", b"root:", b'"weights'):
        assert leak not in found
    picture = corpus.encoded(corpus.scene(), "PNG")
    assert service.ask("/predict", picture).status_code == 200


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"])
def test_other_methods_are_405_in_our_shape(service, method):
    for route in ("/predict", "/model", "/", "/jobs"):
        reply = httpx.request(method, f"{service.url}{route}", timeout=20, trust_env=False)
        assert reply.status_code == 405, (route, reply.status_code)
        assert set(reply.json()) == {"error", "kind"}


def test_no_more_than_the_limit_is_read_of_a_long_body(service):
    """The client counts what the service took before it answered."""
    host, port = service.url.removeprefix("http://").split(":")
    limit, block = 20_000_000, b"x" * 65_536
    for declared in (True, False):
        with socket.create_connection((host, int(port)), timeout=20) as line:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
            how = "Content-Length: 400000000" if declared else "Transfer-Encoding: chunked"
            line.sendall(
                f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n{how}\r\n\r\n".encode()
            )
            taken = 0
            line.settimeout(3)
            try:
                while taken < 3 * limit:
                    line.sendall(block if declared else b"10000\r\n" + block + b"\r\n")
                    taken += len(block)
            except (TimeoutError, BrokenPipeError, ConnectionResetError):
                pass
            try:
                found = line.recv(65_536)
            except ConnectionResetError:
                found = b""
        print(f"\n{'declared' if declared else 'chunked'}: {taken:,} bytes were taken, {found[:30]}")
        assert b" 413 " in found.split(b"\r\n")[0]
        # What lies in the two ends' own buffers was not read by the service.
        assert taken <= (0 if declared else limit) + 1_000_000 + 6_000_000


def test_a_slow_upload_is_ended_and_holds_up_nobody(start, bundle_folder, corpus):
    own = start(bundle_folder, upload_seconds="2")
    host, port = own.url.removeprefix("http://").split(":")
    lines = []
    for _ in range(100):
        line = socket.create_connection((host, int(port)), timeout=20)
        line.sendall(
            b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"
            b"Content-Length: 1000\r\n\r\n--b\r\n"
        )
        lines.append(line)
    picture = corpus.encoded(corpus.scene(), "PNG")
    began = time.perf_counter()
    assert own.ask("/predict", picture).status_code == 200
    assert time.perf_counter() - began < 1.5
    answered = [line.recv(4096).split(b"\r\n")[0] for line in lines]
    assert set(answered) == {b"HTTP/1.1 408 Request Timeout"}
    for line in lines:
        line.close()


@pytest.mark.soak
@pytest.mark.parametrize("uvloop", ["with uvloop", "without"])
def test_nothing_that_a_client_names_is_fetched(start, bundle_folder, corpus, uvloop, tmp_path):
    """With proxy variables that lead to a trap: whatever the service fetched would be seen."""
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['uvloop'] = None\n")
    picture = corpus.encoded(corpus.scene(), "PNG")
    with socket.socket() as trap:
        trap.bind(("127.0.0.1", 0))
        trap.listen(64)
        trap.settimeout(2.0)
        address = f"http://127.0.0.1:{trap.getsockname()[1]}"
        proxies = {name: address for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY")}
        hidden = {"PYTHONPATH": str(tmp_path)} if uvloop == "without" else {}
        own = start(bundle_folder, NO_PROXY="", **proxies, **hidden)
        libraries = {file.path for worker in own.workers() for file in worker.memory_maps()}
        assert any("uvloop" in path for path in libraries) == (uvloop == "with uvloop")
        secret = tmp_path / "secret.png"
        secret.write_bytes(picture)
        texts = (
            f"{address}/x.png", f'"{address}/x.png"', "http://example.com/x.png", "https://example.com/x.png",
            f"file://{secret}", str(secret), "data:image/png;base64,AAAA", "//example.com/x", "ftp://example.com/x",
        )  # fmt: skip
        for text in texts[: len(texts) if uvloop == "with uvloop" else 2]:
            for route in (*ROUTES, "/jobs/explain"):
                for request in (
                    {"files": {"image": (None, text)}},
                    {"files": {"image": ("x.png", text.encode())}},
                    {"files": {"image": (text, text.encode())}},
                    {"data": {"image": text}},
                    {"json": {"image": text}},
                    {"json": text},
                    {"files": {"image": ("p.png", picture)}, "data": {"image": text}},
                    {"files": {"image": ("p.png", picture)}, "data": {"url": text}},
                ):
                    # A job says that a file is no picture in its answer, and takes it first.
                    if route == "/jobs/explain" and b"image" in repr(request.get("files", "")).encode():
                        continue
                    reply = httpx.post(f"{own.url}{route}", timeout=30, trust_env=False, **request)
                    assert 400 <= reply.status_code < 500, (route, request, reply.text)
        with pytest.raises(TimeoutError):
            trap.accept()


def test_it_listens_on_this_machine_alone(service):
    own = [
        line.laddr
        for worker in service.workers()
        for line in worker.net_connections()
        if line.status == "LISTEN"
    ]
    parent = psutil.Process(service.process.pid)
    own += [line.laddr for line in parent.net_connections() if line.status == "LISTEN"]
    assert {address.ip for address in own} == {"127.0.0.1"}


KEY = "a key for the tests, long and random enough"


def test_with_keys_everything_but_live_and_ready_asks_for_one(start, bundle_folder, corpus):
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    own = start(bundle_folder, api_keys=json.dumps({"ann": digest}), key_per_minute="40")
    for route in ("/livez", "/readyz"):
        assert own.get(route).status_code == 200
    reads = ["/", "/model", "/anatomy", "/filters", "/colours", "/samples", "/docs.json", "/openapi.json", "/metrics",
             "/healthz", "/jobs", "/jobs/x", "/web/app.js", "/nowhere", "/favicon.ico", "/schema.json"]  # fmt: skip
    for route in reads:
        reply = own.get(route)
        assert reply.status_code == 401, route
        assert reply.headers["www-authenticate"].startswith("Basic")
        assert reply.json()["kind"] == "no_key"
    picture = corpus.encoded(corpus.scene(), "PNG")
    for route in (*ROUTES, "/jobs/explain"):
        assert own.ask(route, picture).status_code == 401
    wrong = (
        {"X-API-Key": "x"},
        {"X-API-Key": digest},
        {"Authorization": "Bearer"},
        {"Authorization": "Basic !"},
        {"Authorization": "Basic \u00e9".encode("latin-1")},
    )
    for headers in wrong:
        assert own.get("/model", headers=headers).status_code == 401
    for headers in ({"X-API-Key": KEY}, {"Authorization": f"Bearer {KEY}"}):
        assert own.get("/model", headers=headers).status_code == 200
    assert own.get("/model", auth=("anybody", KEY)).status_code == 200
    with ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(lambda _: own.get("/model", headers={"X-API-Key": KEY}), range(60)))
    refused = [reply for reply in replies if reply.status_code == 429]
    assert {reply.status_code for reply in replies} == {200, 429}
    assert 20 <= len(refused) <= 25
    assert int(refused[0].headers["retry-after"]) >= 1
    log = own.log.read_text()
    assert KEY not in log
    assert '"key": "ann"' in log


def test_a_key_given_as_it_is_is_refused_and_not_printed(start, bundle_folder):
    own = start(bundle_folder, wait=False, api_keys=json.dumps({"ann": KEY}))
    own.process.wait(60)
    assert own.process.returncode != 0
    assert "sha256" in own.log.read_text()
    assert KEY not in own.log.read_text()


def test_ids_and_lines_of_log(service, bee):
    reply = httpx.get(f"{service.url}/model", headers={"X-Request-ID": "mine-42"}, trust_env=False)
    assert reply.headers["x-request-id"] == "mine-42"
    odd = httpx.get(f"{service.url}/model", headers={"X-Request-ID": "a b\t<x>"}, trust_env=False)
    assert re.fullmatch(r"[0-9a-f]{16}", odd.headers["x-request-id"])
    given = service.ask("/explain", bee).headers["x-request-id"]
    time.sleep(0.3)
    lines = [json.loads(line) for line in service.log.read_text().splitlines() if line.startswith("{")]
    (mine,) = [line for line in lines if line["id"] == given]
    assert (mine["route"], mine["status"], mine["method"]) == ("/explain", 200, "POST")
    assert mine["received"] > len(bee)
    assert max(map(len, map(json.dumps, lines))) < 400, "no picture in the log"


NAMES = [
    b'filename="' + b"n" * 9_000 + b'.jpg"',
    b'filename="a\nb.jpg"',
    b'filename="\xff\xfe.jpg"',
    b'filename="../../\xed\xa0\x80.jpg"',
    b'filename=""',
    b"filename*=UTF-8''%E2%82%AC.jpg",
    b"filename*=no-such-charset''%zz",
    b'filename*0="a"; filename*1=".jpg"',
]


def test_no_file_name_keeps_a_picture_out_nor_the_job_that_it_is_in(service, bee):
    named = form(*(part(b'form-data; name="image"; ' + name, bee) for name in NAMES))
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    reply = httpx.post(f"{service.url}/jobs/predict", content=named, headers=headers, trust_env=False)
    assert (reply.status_code, reply.json()["pictures"]) == (202, len(NAMES))


@pytest.mark.parametrize("content", [b"x" * 500, b"x" * 50_000], ids=["short", "long"])
def test_a_picture_without_a_file_name_is_told_what_it_lacks(service, content):
    body = form(part(b'form-data; name="image"', content))
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    for route in ("/explain", "/jobs/explain"):
        reply = httpx.post(f"{service.url}{route}", content=body, headers=headers, trust_env=False)
        assert reply.status_code in {400, 422}
        assert "file name" in reply.json()["error"]


@pytest.mark.parametrize("encoding", ["gzip", "br", "x" * 500])
def test_a_compressed_body_is_refused_by_name(service, bee, encoding):
    body, headers = gzip.compress(form(part(IMAGE, bee))), {"Content-Type": "multipart/form-data; boundary=b"}
    for route in ("/predict", "/jobs/predict"):
        reply = httpx.post(
            f"{service.url}{route}", content=body, headers=headers | {"Content-Encoding": encoding}, trust_env=False
        )  # fmt: skip
        assert (reply.status_code, reply.json()["kind"]) == (415, "unsupported_encoding")
        assert encoding[:40] in reply.json()["error"]


@pytest.mark.parametrize(
    ("method", "route", "allowed"),
    [
        ("GET", "/explain", "POST"),
        ("DELETE", "/model", "GET, HEAD"),
        ("PUT", "/jobs/" + "a" * 22, "DELETE, GET, HEAD"),
    ],
)
def test_a_wrong_method_is_told_the_right_ones(service, method, route, allowed):
    reply = httpx.request(method, f"{service.url}{route}", trust_env=False)
    assert (reply.status_code, reply.json()["kind"]) == (405, "method_not_allowed")
    assert sorted(re.findall("[A-Z]{3,}", reply.json()["error"])) == allowed.split(", ")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        # Over plain http to another machine browsers tell the origin only.
        ({"Origin": "http://elsewhere.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://["}, 403),
        ({"Origin": ""}, 403),
        ({"Origin": "http://10.1.2.3:3000", "Host": "10.1.2.3:3000"}, 200),
        ({"Origin": "http://ours.example", "X-Forwarded-Host": "ours.example"}, 200),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "https://ours.example"}, 200),
    ],
    ids=str,
)
def test_a_page_of_another_site_cannot_ask_in_a_readers_name(service, bee, headers, status):
    reply = httpx.post(f"{service.url}/predict", files={"image": bee}, headers=headers, trust_env=False)
    assert reply.status_code == status
    if status != 200:
        assert reply.json()["kind"] == "cross_site"


@pytest.mark.soak
def test_a_form_of_half_delimiters_holds_up_nobody(start, bundle_folder):
    """The parser goes through it byte by byte; what else is asked must come through in between."""
    own = start(bundle_folder)
    body = (
        b'--b\r\nContent-Disposition: form-data; name="image"; filename="p"\r\n\r\n' + b"\r\n--bX" * 2_000_000
    )
    waits: list[float] = []
    with ThreadPoolExecutor(1) as pool:
        hostile = pool.submit(
            httpx.post, f"{own.url}/predict", content=body, timeout=60, trust_env=False,
            headers={"Content-Type": "multipart/form-data; boundary=b"},
        )  # fmt: skip
        while not hostile.done():
            began = time.perf_counter()
            assert own.get("/livez").status_code == 200
            waits.append(time.perf_counter() - began)
            time.sleep(0.02)
    print(f"\n{len(body):,} bytes; /livez asked {len(waits)} times meanwhile, {max(waits):.2f} s at most")
    assert 400 <= hostile.result().status_code < 500
    assert max(waits) < 0.5


def test_odd_paths_leave_nothing_in_the_figures(service):
    for n in range(50):
        assert service.get(f"/nowhere-{n}").status_code == 404
    figures = service.get("/metrics")
    assert figures.headers["content-type"].startswith("text/plain")
    assert "nowhere" not in figures.text
    assert 'lucida_requests_total{route="unknown",status="404"}' in figures.text
