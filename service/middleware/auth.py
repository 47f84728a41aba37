"""API keys: who may ask.

Keys are kept as their SHA-256 only; they are long random texts, so that a slow hash would protect nothing.
How often a key may ask is counted by :mod:`service.middleware.rate_limit`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac

from starlette.datastructures import Headers


def read_key(headers: Headers) -> str | None:
    """Return the key that a request brings: as a bearer token, as X-API-Key, or as the password that a
    browser asks for.
    """
    if "x-api-key" in headers:
        return headers["x-api-key"]
    scheme, _, rest = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return rest.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(rest, validate=True).decode().partition(":")[2]
        except ValueError:
            return None
    return None


class ApiKeys:
    """The keys of the settings, {name: sha256 in hexadecimal}."""

    def __init__(self, keys: dict[str, str]) -> None:
        self._keys = keys

    @property
    def names(self) -> list[str]:
        """In the order of the settings."""
        return list(self._keys)

    def owner(self, key: str | None) -> str | None:
        """Return the name of the key's owner; None where there is none. Takes as long whichever it is."""
        digest = hashlib.sha256((key or "").encode("utf-8", "surrogateescape")).hexdigest()
        owners = [name for name, key_digest in self._keys.items() if hmac.compare_digest(key_digest, digest)]
        return owners[0] if owners else None
