"""Public files that are read as they are, such as the CSV files of time series."""

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jdl.data.base import default_data_dir
from jdl.data.download import fetch, file_name
from jdl.data.public_tables import TABLES, PublicTable
from jdl.errors import UserError


@dataclass(frozen=True, kw_only=True)
class PublicFile:
    """A file on the web that `jdl prepare` brings, in a folder of its own in a data directory."""

    name: str  # of its folder
    description: str  # one sentence: contents and authors
    url: str
    size: int  # bytes
    checksum: str  # SHA-256

    @property
    def path(self) -> Path:
        """Path in a data directory."""
        return Path(self.name, file_name(self.url))


# Never reached from where this was written: sizes and hashes are those of copies that others made.
_BROWNLEE = "https://raw.githubusercontent.com/jbrownlee/Datasets/master"

FILES = (
    PublicFile(
        name="temperatures",
        description="Daily minimum temperatures in Melbourne, 1981-1990, in degrees Celsius "
        "(Australian Bureau of Meteorology).",
        url=f"{_BROWNLEE}/daily-min-temperatures.csv",
        size=67_921,
        checksum="8b9de63ed6789492bf497625e7f9beb96a63d367b4b0a21754006f749fa5e5da",
    ),
    PublicFile(
        name="airline_passengers",
        description="Monthly passengers of international airlines, 1949-1960, in thousands "
        "(Box and Jenkins, 1970).",
        url=f"{_BROWNLEE}/airline-passengers.csv",
        size=2_180,
        checksum="8cb51be753a718d9be5d76d7e238cc224792754676adc21faa59e954b0201621",
    ),
)


def prepare_file(
    file: PublicFile,
    root: Path,
    *,
    raw: Path | None = None,
    download: bool = True,
    overwrite: bool = False,
    report: Callable[[str], object] = print,
) -> Path:
    """Copies or downloads a file to a data directory; it appears only when complete.

    Args:
      file: one of `FILES`.
      root: the data directory.
      raw: the file, or a directory that holds it; None to download it.
      download: whether to download it without `raw`.
      overwrite: whether to replace one that is already there.
      report: called with a sentence per action.

    Returns:
      Its path.

    Raises:
      UserError: it is missing, is not the original, or cannot be downloaded or written.
    """
    target = root / file.path
    if target.is_file() and not overwrite:
        report(f"{target} is already prepared")
        return target
    if raw is None and not download:
        raise UserError(f"{target} does not exist")
    if raw is None:
        fetch(
            (file.url,), target.parent, known={file.url: file}, overwrite=overwrite, report=report
        )
    else:
        _copy(file, raw.expanduser(), target)
    report(f"prepared {target}")
    return target


def _copy(file: PublicFile, raw: Path, target: Path) -> None:
    source = raw / target.name if raw.is_dir() else raw
    try:
        content = source.read_bytes()
    except OSError as error:
        raise UserError(f"{source} cannot be read ({error.strerror})") from error
    if hashlib.sha256(content).hexdigest() != file.checksum:
        raise UserError(
            f"{source} is not the original of {file.name}: its SHA-256 differs; to train on it as "
            f"it is, name it in --data.path"
        )
    part = target.with_name(f"{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, part)
        part.replace(target)
    except OSError as error:
        raise UserError(f"cannot write in {target.parent} ({error.strerror})") from error


def known_file(path: str | Path) -> PublicFile | PublicTable | None:
    """Returns the public file or table that a bare file name stands for, if there is one."""
    return next((file for file in (*FILES, *TABLES) if file.path.name == str(path)), None)


def locate(path: str) -> str:
    """Returns the path to read: the given one, or the place of a prepared file of that name.

    Raises:
      UserError: `jdl prepare` writes a file of that name, and it is not there.
    """
    file = known_file(path)
    if file is None or Path(path).exists():
        return path
    prepared = default_data_dir() / file.path
    if not prepared.is_file():
        raise UserError(
            f"{path} is neither here nor in {prepared.parent}: `jdl prepare {file.name}` downloads "
            f"it, or name its place with --data.path"
        )
    return str(prepared)
