"""Rows of public tables, of the texts of their originals: Adult, COMPAS, German credit."""

import csv
import io
from collections.abc import Sequence

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


def adult(texts: Sequence[str]) -> list[list[str]]:
    """Returns the header and all rows, `income` without the full stop of the test split.

    Args:
      texts: of `adult.data` and `adult.test`.
    """
    rows = [_ADULT]
    for split, text in zip(("train", "test"), texts, strict=True):
        for line in text.splitlines():
            fields = [field.strip() for field in line.split(",")]
            if len(fields) == 15:  # not so the first line of the test split, and blank ones
                rows.append([*fields[:-1], fields[-1].removesuffix("."), split])
    return rows


def compas(texts: Sequence[str]) -> list[list[str]]:
    """Returns the header and the 6,172 rows that ProPublica analyzed, without names and dates.

    Args:
      texts: of `compas-scores-two-years.csv`.
    """
    rows = [_COMPAS]
    for row in csv.DictReader(io.StringIO(texts[0])):
        near = row["days_b_screening_arrest"]
        if not near or abs(float(near)) > 30 or row["is_recid"] == "-1":
            continue
        if row["c_charge_degree"] != "O" and row["score_text"] != "N/A":
            rows.append([row[name] for name in _COMPAS])
    return rows


def german_credit(texts: Sequence[str]) -> list[list[str]]:
    """Returns the header and all rows, with `sex` apart from the marital status.

    Args:
      texts: of `german.data`, whose codes are kept.
    """
    rows = [_GERMAN]
    for line in texts[0].splitlines():
        fields = line.split()
        sex = "female" if fields[8] in ("A92", "A95") else "male"
        rows.append([*fields[:-1], sex, "good" if fields[-1] == "1" else "bad"])
    return rows
