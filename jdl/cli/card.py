"""`jdl card`."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg


def card(
    directory: Annotated[Positional[Path], arg(metavar="RUN", help="directory of a finished run.")],
    /,
    out: Path | None = None,
) -> None:
    """Write the model card of a run, in the fields of Hugging Face's.

    It is filled from the record: data, settings, scores, costs, and what `jdl audit` and `jdl
    calibrate` have found. What no record holds, such as intended uses, is left to be written.
    Executes nothing from the directory.

    Args:
        out: the Markdown file (default: RUN/README.md).
    """
    from jdl.audit.card import write_card

    print(write_card(directory, out))
