"""What a service says to odd, broken and hostile files, and what they cost it."""

from __future__ import annotations

import io
import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import PIL.Image
import psutil
import pytest

MB = 2**20


def sent(service, case, route: str = "/explain") -> httpx.Response:
    """As a client that writes the form by hand: any file name, any type."""
    name = case.filename.replace("\\", "\\\\").replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")
    head = (
        f'--b\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\nContent-Type: {case.kind}'
    )
    body = head.encode() + b"\r\n\r\n" + case.data + b"\r\n--b--\r\n"
    headers = {"content-type": "multipart/form-data; boundary=b"}
    return httpx.post(f"{service.url}{route}", content=body, headers=headers, timeout=60, trust_env=False)


def strict(text: str) -> dict:
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in the answer"))


@pytest.fixture(scope="module")
def all_cases(corpus, bee) -> list:
    found = list(corpus.cases(PIL.Image.open(io.BytesIO(bee)).convert("RGB")))
    assert len({case.name for case in found}) == len(found) >= 150
    return found


@pytest.fixture(scope="module")
def answers(service, all_cases) -> dict:
    with ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(lambda case: sent(service, case), all_cases))
    return {case.name: (case, reply) for case, reply in zip(all_cases, replies, strict=True)}


def test_each_file_gets_the_status_that_it_deserves(answers):
    wrong = {
        name: (reply.status_code, reply.text[:120])
        for name, (case, reply) in answers.items()
        if reply.status_code not in case.expected
    }
    assert not wrong
    counted = Counter(reply.status_code for _, reply in answers.values())
    print(f"\n{len(answers)} files: {dict(counted)}")
    assert not [status for status in counted if status >= 500]


def test_a_refusal_is_one_readable_sentence(answers):
    for name, (_, reply) in answers.items():
        if reply.status_code == 200:
            continue
        found = strict(reply.text)
        assert set(found) == {"error", "kind"}, name
        assert found["error"][0].isupper(), name
        assert found["error"].endswith("."), name
        assert len(found["error"]) < 400, name
        for leak in ("Traceback", "/tmp", ".py", "0x7f", "site-packages", "object at"):
            assert leak not in found["error"], name


def test_an_answer_is_strict_json_of_finite_numbers(answers):
    for name, (_, reply) in answers.items():
        if reply.status_code == 200:
            found = strict(reply.text)
            assert found["predictions"], name
            assert np.isfinite(found["evidence"][0]["grid"]["values"]).all(), name


def test_files_of_one_picture_get_the_same_label_and_the_same_map(answers):
    plain = answers["plain"][1].json()
    expected = np.array(plain["evidence"][0]["grid"]["values"])
    scale = np.abs(expected).max()
    worst = {"exact": 0.0, "lossy": 0.0}
    for name, (case, reply) in answers.items():
        if case.twin is None:
            continue
        found = reply.json()
        assert found["image"] == plain["image"], name
        assert found["predictions"][0]["label"] == plain["predictions"][0]["label"], name
        difference = float(np.abs(np.array(found["evidence"][0]["grid"]["values"]) - expected).max() / scale)
        assert difference <= case.twin, (name, difference)
        kind = "lossy" if case.twin > 0.1 else "exact"
        worst[kind] = max(worst[kind], difference)
    print(f"\nlargest difference of a twin's map: {worst}")


@pytest.mark.parametrize("name", ["png bomb 60000x60000", "bmp bomb", "jpeg bomb", "2,000 scans"])
def test_a_bomb_is_refused_from_its_header(service, all_cases, name):
    case = next(case for case in all_cases if case.name == name)
    sent(service, case)
    before, times = service.memory(), []
    for _ in range(5):
        start = time.perf_counter()
        assert sent(service, case).status_code == 413
        times.append(time.perf_counter() - start)
    grown = (service.memory() - before) / MB
    print(f"\n{name}: {np.median(times) * 1000:.0f} ms, memory {grown:+.1f} MB")
    assert np.median(times) <= 0.25
    assert grown <= 64


@pytest.mark.soak
def test_three_passes_over_everything_leave_the_memory_as_it_was(start, small_folder, all_cases):
    own = start(small_folder)
    after = []
    for _ in range(3):
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda case: sent(own, case).status_code, all_cases))
        time.sleep(1.5)
        after.append(own.memory() / MB)
    print(f"\nMB after each pass: {[round(each) for each in after]}")
    assert after[2] - after[0] <= 150
    assert own.get("/readyz").status_code == 200


def test_a_folder_of_temporary_files_is_not_left_behind(service, all_cases):
    """Large uploads go through temporary files; nothing of them stays open."""
    large = next(case for case in all_cases if case.name == "24 megapixels")
    assert sent(service, large).status_code == 200
    for worker in service.workers():
        assert not [file.path for file in worker.open_files() if file.path.startswith("/tmp/tmp")]
    assert all(isinstance(worker, psutil.Process) for worker in service.workers())
