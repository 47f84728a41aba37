"""Names under which the service may be asked, where no key says who asks.

A page of another site can have its own name lead to this machine (DNS rebinding), and a browser then takes
the service for a part of that site. It still sends the name, so a name that is not ours is refused; an
address cannot be rebound.
"""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from ipaddress import ip_address

from service.errors import HTTPError


def check_host(header: str, allowed: Sequence[str]) -> None:
    """Raise HTTPError for a Host header that names neither this machine, an address nor an allowed host."""
    name = _host_name(header)
    if not name or _is_address(name) or name == "localhost" or name.endswith(".localhost"):
        return
    if any(_matches(name, pattern) for pattern in allowed):
        return
    raise HTTPError(
        HTTPStatus.FORBIDDEN, "unknown_host",
        f"The service is not known as {name[:80]!r}. Without API keys it answers as localhost, by its "
        "address, and by the names in LUCIDA_ALLOWED_HOSTS.",
    )  # fmt: skip


def _host_name(header: str) -> str:
    """Return the name or address without its port, in lower case."""
    header = header.strip().lower()
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0].rstrip(".")


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _matches(name: str, pattern: str) -> bool:
    return pattern in {"*", name} or (pattern.startswith("*.") and name.endswith(pattern[1:]))
