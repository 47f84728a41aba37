"""Signatures: what was signed holds, what was altered, moved or signed by another does not."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

from models.bundle import load_bundle
from models.errors import BundleError, ConfigError
from models.signature import SIGNATURE_FILE, check_signature, read_private_key, read_public_key, sign_digest

DIGEST = "a" * 64


def openssl(*words):
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl: apt-get install openssl")
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Pairs of key files as openssl writes them."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("own", "other"):
        openssl("genpkey", "-algorithm", "ed25519", "-out", folder / f"{name}.pem")
        openssl("pkey", "-in", folder / f"{name}.pem", "-pubout", "-out", folder / f"{name}.pub")
    openssl("genrsa", "-out", folder / "rsa.pem", "2048")
    openssl("pkey", "-in", folder / "rsa.pem", "-pubout", "-out", folder / "rsa.pub")
    openssl("pkey", "-in", folder / "own.pem", "-aes128", "-passout", "pass:x", "-out", folder / "locked.pem")
    return folder


def test_a_signature_holds_for_its_digest_and_its_key_alone(keys, tmp_path):
    sign_digest(tmp_path, DIGEST, read_private_key(keys / "own.pem"))
    own, other = (read_public_key(keys / name) for name in ("own.pub", "other.pub"))
    check_signature(tmp_path, DIGEST, own)
    with pytest.raises(BundleError, match="not signed by the owner of the key"):
        check_signature(tmp_path, DIGEST, other)
    with pytest.raises(BundleError, match="not about the bundle bbbb"):
        check_signature(tmp_path, "b" * 64, own)
    content = json.loads((tmp_path / SIGNATURE_FILE).read_text())
    (tmp_path / SIGNATURE_FILE).write_text(json.dumps({**content, "digest": "b" * 64}))
    with pytest.raises(BundleError, match="not signed by the owner"):
        check_signature(tmp_path, "b" * 64, own)


@pytest.mark.parametrize("text", ["{}", "[]", '{"algorithm": "ed25519"}', "no"])
def test_what_is_no_signature_is_refused(keys, tmp_path, text):
    (tmp_path / SIGNATURE_FILE).write_text(text)
    with pytest.raises(BundleError):
        check_signature(tmp_path, DIGEST, read_public_key(keys / "own.pub"))


def test_keys_that_cannot_be_used_are_named_with_the_reason(keys, tmp_path):
    for name, reason in (("rsa.pem", "ed25519"), ("locked.pem", "password"), ("own.pub", "no private key")):
        with pytest.raises(ConfigError, match=reason):
            read_private_key(keys / name)
    for name, reason in (("rsa.pub", "ed25519"), ("own.pem", "no public key"), ("absent", "cannot be read")):
        with pytest.raises(ConfigError, match=reason):
            read_public_key(keys / name)


def test_a_service_with_a_key_serves_only_what_its_owner_signed(keys, bundle_folder, start, tmp_path):
    folder = tmp_path / "three"
    shutil.copytree(bundle_folder, folder)
    refused = start(folder, wait=False, public_key=str(keys / "own.pub"))
    refused.process.wait(60)
    assert "is not signed: it has no signature.json" in refused.log.read_text()
    assert "Traceback" not in refused.log.read_text()
    digest = load_bundle(folder).provenance.digest
    sign_digest(folder, digest, read_private_key(keys / "own.pem"))
    served = start(folder, public_key=str(keys / "own.pub"))
    assert served.get("/model").json()["digest"] == digest
