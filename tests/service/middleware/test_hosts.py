"""Names under which the service may be asked: a page's own name that leads here is none of them."""

from __future__ import annotations

import pytest

from service.errors import HTTPError
from service.middleware.hosts import check_host

OURS = ["localhost", "LOCALHOST:3000", "lucida.localhost", "localhost.", "127.0.0.1", "127.0.0.1:3000",
        "[::1]:3000", "10.1.2.3:80", "[fe80::1]", ""]  # fmt: skip
FOREIGN = [
    "rebound.example",
    "rebound.example:3000",
    "127.0.0.1.example",
    "localhost.example",
    "notlocalhost",
    "1",
]


@pytest.mark.parametrize("host", OURS)
def test_this_machine_and_any_address_may_be_asked(host):
    check_host(host, [])


@pytest.mark.parametrize("host", FOREIGN)
def test_another_name_is_refused_and_the_setting_named(host):
    with pytest.raises(HTTPError, match="LUCIDA_ALLOWED_HOSTS") as refused:
        check_host(host, ["lucida.example.org"])
    assert (refused.value.status, refused.value.kind) == (403, "unknown_host")


@pytest.mark.parametrize(
    ("host", "pattern"),
    [
        ("lucida.example.org:443", "lucida.example.org"),
        ("a.b.example.org", "*.example.org"),
        ("x.example", "*"),
    ],
)
def test_allowed_names_may_be_asked(host, pattern):
    check_host(host, ["other", pattern])


def test_a_pattern_allows_neither_the_name_itself_nor_one_that_ends_like_it():
    for host in ("example.org", "badexample.org"):
        with pytest.raises(HTTPError, match="is not known"):
            check_host(host, ["*.example.org"])


def test_a_service_without_keys_answers_to_its_names_only(service):
    headers = {"Host": "rebound.example:3000"}
    for route in ("/", "/model", "/metrics", "/web/app.js"):
        refused = service.get(route, headers=headers)
        assert (refused.status_code, refused.json()["kind"]) == (403, "unknown_host")
    assert service.get("/livez", headers=headers).status_code == 200, "a probe may ask by any name"
    assert service.get("/model", headers={"Host": "localhost"}).status_code == 200
