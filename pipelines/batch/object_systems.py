"""Object stores opened as file systems of Arrow, by the variables that their own tools read.

- s3://: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL and what else Arrow's S3 knows.
- gs://: GOOGLE_APPLICATION_CREDENTIALS, or the machine's own account; STORAGE_EMULATOR_HOST for an emulator.
- az:// and abfs://: AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT with AZURE_STORAGE_KEY or
  AZURE_STORAGE_SAS_TOKEN, or the machine's own identity.
"""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import urlsplit

import pyarrow.fs as arrow_fs

from models.errors import ConfigError

SCHEMES = ("s3", "gs", "gcs", "az", "abfs", "abfss")
_AZURE, _GOOGLE = ("az", "abfs", "abfss"), ("gs", "gcs")


def open_system(url: str) -> tuple[Any, str]:
    """Return the file system of an address, and the path of the address in it.

    Raises ConfigError where a variable is missing or wrong; OSError, ValueError or NotImplementedError as
    Arrow does.
    """
    scheme, _, rest = url.partition("://")
    container = rest.partition("/")[0]
    if scheme in _AZURE and "@" not in container:
        return arrow_fs.AzureFileSystem(**_azure_account(url)), rest
    emulator = os.environ.get("STORAGE_EMULATOR_HOST")
    if scheme in _GOOGLE and emulator:
        where = urlsplit(emulator if "://" in emulator else f"http://{emulator}")
        system = arrow_fs.GcsFileSystem(anonymous=True, scheme=where.scheme, endpoint_override=where.netloc)
        return system, rest
    opened: tuple[Any, str] = arrow_fs.FileSystem.from_uri(f"abfs://{rest}" if scheme in _AZURE else url)
    return opened


def _azure_account(url: str) -> dict[str, Any]:
    """Return the account of an address that names none, as the environment has it."""
    text = os.environ.get("AZURE_STORAGE_CONNECTION_STRING", "")
    parts = dict(part.split("=", 1) for part in text.split(";") if "=" in part)
    name = parts.get("AccountName") or os.environ.get("AZURE_STORAGE_ACCOUNT")
    if not name:
        raise ConfigError(
            f"{url} names no account; set AZURE_STORAGE_CONNECTION_STRING or AZURE_STORAGE_ACCOUNT, or write "
            "abfs://CONTAINER@ACCOUNT.blob.core.windows.net/FOLDER."
        )
    account: dict[str, Any] = {"account_name": name}
    if key := parts.get("AccountKey") or os.environ.get("AZURE_STORAGE_KEY"):
        account["account_key"] = key
    elif token := parts.get("SharedAccessSignature") or os.environ.get("AZURE_STORAGE_SAS_TOKEN"):
        account["sas_token"] = token
    if endpoint := parts.get("BlobEndpoint"):
        # An emulator has the account in the path, which Arrow adds for a local address itself.
        where = urlsplit(endpoint)
        account |= {"blob_storage_scheme": where.scheme, "blob_storage_authority": where.netloc}
        account |= {"dfs_storage_scheme": where.scheme, "dfs_storage_authority": where.netloc}
    return account
