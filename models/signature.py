"""A signature over a bundle's digest, by an ed25519 key (RFC 8032): who made the bundle vouches for it.

The digest is that of bundle.json, which holds the digests of the bundle's files; so one signature covers
the manifest, the weights, the probe and the reference. What lies beside a bundle (samples, an atlas, a card,
int8 blocks) is not covered.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from models.errors import BundleError, ConfigError
from models.strict_files import parse_json, read_file

SIGNATURE_FILE = "signature.json"
_ALGORITHM = "ed25519"
_PURPOSE = b"camera-lucida bundle 1\n"
"""Before the digest, so that a signature of something else is none of a bundle."""
_MOST_BYTES = 10_000


def read_private_key(path: Path) -> Ed25519PrivateKey:
    """Read a private key in PEM, as `openssl genpkey -algorithm ed25519` writes it; raises ConfigError."""
    try:
        key = load_pem_private_key(_read_key(path), password=None)
    except TypeError as error:
        raise ConfigError(f"The key {path} has a password; give one without.") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"The file {path} is no private key in PEM.") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"The key {path} must be an ed25519 key.")
    return key


def read_public_key(path: Path) -> Ed25519PublicKey:
    """Read a public key in PEM, as `openssl pkey -pubout` writes it; raises ConfigError."""
    try:
        key = load_pem_public_key(_read_key(path))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"The file {path} is no public key in PEM.") from error
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(f"The key {path} must be an ed25519 key.")
    return key


def sign_digest(folder: Path, digest: str, key: Ed25519PrivateKey) -> None:
    """Write the signature over a bundle's digest beside it."""
    content = {
        "algorithm": _ALGORITHM,
        "digest": digest,
        "signature": base64.b64encode(key.sign(_message(digest))).decode(),
        "key": fingerprint(key.public_key()),
    }
    (folder / SIGNATURE_FILE).write_text(json.dumps(content, indent=2))


def check_signature(folder: Path, digest: str, key: Ed25519PublicKey) -> None:
    """Raise BundleError unless the bundle's digest is signed by this key's owner."""
    if not (folder / SIGNATURE_FILE).exists():
        raise BundleError(f"The bundle {digest[:12]} is not signed: it has no {SIGNATURE_FILE}.")
    content = parse_json(read_file(folder / SIGNATURE_FILE, most=_MOST_BYTES), SIGNATURE_FILE)
    try:
        if content["algorithm"] != _ALGORITHM or content["digest"] != digest:
            raise BundleError(f"The {SIGNATURE_FILE} is not about the bundle {digest[:12]}.")
        signature = base64.b64decode(content["signature"], validate=True)
        key.verify(signature, _message(digest))
    except InvalidSignature as error:
        raise BundleError(
            f"The bundle {digest[:12]} is not signed by the owner of the key {fingerprint(key)}, but by "
            f"that of {str(content.get('key'))[:16]} or nobody."
        ) from error
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise BundleError(f"The {SIGNATURE_FILE} is not a proper signature: {error!r}.") from error


def fingerprint(key: Ed25519PublicKey) -> str:
    """Return the first 16 hexadecimal digits of a public key's SHA-256."""
    return hashlib.sha256(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).hexdigest()[:16]


def _message(digest: str) -> bytes:
    return _PURPOSE + digest.encode()


def _read_key(path: Path) -> bytes:
    try:
        return path.read_bytes()[:_MOST_BYTES]
    except OSError as error:
        raise ConfigError(f"The key {path} cannot be read: {error.strerror}.") from error
