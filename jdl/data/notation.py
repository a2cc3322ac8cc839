"""How numbers, dates and missing values are written in the fields of a table."""

import functools
import math
import re
from dataclasses import dataclass

MISSING = ("", "na", "n/a", "#n/a", "<na>", "nan", "null", "none", "?", "-", ".")
"""Fields without a value, in any case."""

# Single capitals are letters of codes, such as seat 12B.
_UNIT = (
    r"\s+[^\W\d]{1,5}\.?|(?-i:[kK]|bn|[kmcµ]?[gmlsw]|[kKMGT]i?[bB]|[kMG]?Hz|lbs?|oz|hp|cc|k?Wh?)"
)
_NUMBER_LIKE = re.compile(
    r"""["'(\[{]?\s*[$€£¥]?\s*[-+\u2212]*[$€£¥]?\d[\d.,'_\s]*\s*[%$€£¥)\]}]?["']?-?"""
    rf"|[-+]?\d[\d.,]*(?:{_UNIT})"  # 5 kg, 10k
    r"|[-+]?\d+\s*/\s*\d+|[-+\d.e]+[-+][\d.e]*[ij]"  # fractions and complex numbers
    r"|[\[({][\d\s.,e+-]*\d[\d\s.,e+-]*[\])}]",  # vectors
    re.IGNORECASE,
)
_INFINITE = re.compile(r"[-+]?inf(inity)?|[-+]?[\d.]+e[+]?\d+", re.IGNORECASE)
_DATE = re.compile(
    r"\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}([.,]\d+)?)?\s?(Z|[+-]\d{2}:?\d{2})?)?"
)
_MONTH = "(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*[.,]?"
_DATE_LIKE = re.compile(
    rf"\d{{1,4}}[./-]\d{{1,2}}[./-]\d{{1,4}}(\D.*)?|\d{{1,2}}:\d{{2}}(:\d{{2}})?\s*([ap]m)?"
    rf"|\d{{1,2}}[ -]{_MONTH}[ -]\d{{2,4}}|{_MONTH}[ -](\d{{1,2}},? )?\d{{2,4}}"
    r"|\d{4}-(0[1-9]|1[0-2]|W\d\d)|\d{8}T\d{4,6}Z?",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True)
class Notation:
    """How the fields of a file are written."""

    missing: tuple[str, ...] | None = None  # in any case; None: those of `MISSING`
    decimal: str = "."
    thousands: str = ""

    @property
    def _missing(self) -> tuple[str, ...]:
        return MISSING if self.missing is None else self.missing

    def is_missing(self, text: str) -> bool:
        """Whether a field, without blanks around it, has no value."""
        return text.lower() in self._lower

    @functools.cached_property
    def _lower(self) -> frozenset[str]:
        return frozenset(text.lower() for text in self._missing)

    @functools.cached_property
    def missing_numbers(self) -> frozenset[float]:
        """Numbers that stand for no value, such as -999."""
        return frozenset(
            number for text in self._missing if (number := number_of(text)) is not None
        )

    def number(self, text: str) -> float:
        """Returns a field as a finite number.

        Raises:
          ValueError: it is none.
        """
        if self.decimal != "." or self.thousands:
            if not self._form.fullmatch(text):
                raise ValueError(text)
            text = text.replace(self.thousands, "") if self.thousands else text
            text = text.replace(self.decimal, ".")
        value = float(text)
        if not math.isfinite(value):
            raise ValueError(text)
        return value

    @property
    def is_plain(self) -> bool:
        """Whether numbers are written as in Python, and none stands for no value."""
        return self.decimal == "." and not self.thousands and not self.missing_numbers

    @functools.cached_property
    def _form(self) -> re.Pattern[str]:
        group, point = re.escape(self.thousands), re.escape(self.decimal)
        whole = rf"\d{{1,3}}(?:{group}\d{{3}})+|\d+" if group else r"\d+"
        return re.compile(rf"[-+]?(?:(?:{whole})(?:{point}\d*)?|{point}\d+)(?:[eE][-+]?\d+)?")


def number_of(text: str) -> float | None:
    """Returns a finite number, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def looks_like_number(text: str) -> bool:
    """Whether a field is a number that Python does not read, such as `1,5`, `$5` or `5 %`."""
    return number_of(text) is None and _NUMBER_LIKE.fullmatch(text) is not None


def is_infinite(text: str) -> bool:
    """Whether a field is a number without a finite value, such as `inf` or `1e400`."""
    return _INFINITE.fullmatch(text) is not None


def is_date(text: str) -> bool:
    """Whether a field is written as a date, with or without a time, that `days` reads."""
    return _DATE.fullmatch(text) is not None


def looks_like_date(text: str) -> bool:
    """Whether a field may be a date or a time in another notation, such as `1/2/2024`."""
    return _DATE_LIKE.fullmatch(text) is not None
