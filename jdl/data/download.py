"""Atomic downloads of the originals of public data sets."""

import hashlib
import http.client
import os
import ssl
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from jdl.errors import UserError

# Raised when a connection fails or breaks off.
_BROKEN_OFF = (
    URLError,
    http.client.HTTPException,
    ConnectionError,
    TimeoutError,
    ssl.SSLError,
)


def fetch(
    urls: tuple[str, ...],
    folder: Path,
    *,
    known: Mapping[str, Any],
    report: Callable[[str], object] = print,
) -> None:
    """Downloads files that are not in `folder` yet; each appears only when complete.

    Args:
      urls: addresses, whose last parts name the files.
      folder: destination; created if missing.
      known: for an address, an object that tells the file's `size` in bytes and its SHA-256,
        `checksum`; others are only checked for being as long as the server says, and not empty.
      report: called with a message per download.

    Raises:
      UserError: no connection, a file that is not the one expected, or no permission to write.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write in {folder} ({error.strerror})") from error
    for url in urls:
        target = folder / file_name(url)
        if target.is_file():
            continue
        report(f"downloading {url}")
        part = target.with_name(f"{target.name}.{os.getpid()}.part")
        try:
            _download(url, part, known.get(url))
            part.replace(target)
        except _BROKEN_OFF as error:
            reason = getattr(error, "reason", error)
            if isinstance(error, HTTPError):
                reason = str(error)
                error.close()  # it is the response, too
            raise UserError(
                f"cannot download {url} ({reason}): fetch it yourself and give --from DIR, a "
                f"directory with {', '.join(file_name(url) for url in urls)}"
            ) from error
        except OSError as error:
            raise UserError(f"cannot write in {folder} ({error.strerror})") from error
        finally:
            part.unlink(missing_ok=True)


def _download(url: str, part: Path, expected: Any) -> None:
    digest, size = hashlib.sha256(), 0
    with urllib.request.urlopen(url, timeout=60) as response, part.open("wb") as stream:
        length = response.headers.get("Content-Length")
        while block := response.read(1 << 20):
            digest.update(block)
            size += stream.write(block)
    if expected is not None and (size, digest.hexdigest()) != (expected.size, expected.checksum):
        raise UserError(
            f"{url} gave a file that is not the original: its SHA-256 differs; give a copy of the "
            f"original with --from"
        )
    if size == 0 or (length is not None and size != int(length)):
        raise UserError(f"{url} gave only {size} bytes: the download broke off")


def checksums(name: str) -> Mapping[str, Any]:
    """Returns size and SHA-256 by address from TFDS' records; empty if it has none."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import checksums as records_of

    package = Path(tfds.__file__).parent
    records = (
        package / "url_checksums" / f"{name}.txt",
        package / "datasets" / name / "checksums.tsv",
    )
    return next((records_of.load_url_infos(path) for path in records if path.is_file()), {})


def file_name(url: str) -> str:
    """Returns the last part of an address."""
    return PurePosixPath(urlsplit(url).path).name
