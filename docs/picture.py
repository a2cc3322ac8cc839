"""Runs `jdl train digits_mlp` and draws what it prints: `python docs/picture.py`."""

import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

TARGET = Path(__file__).parent / "pages" / "run.svg"
COMMAND = ["jdl", "train", "digits_mlp"]


def main() -> None:
    """Writes the picture beside the pages."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", *COMMAND]
        lines = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=True
        ).stdout.splitlines()
    console = Console(record=True, width=118, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(Text("$ " + " ".join(COMMAND), style="bold"))
    for line in [*lines[:6], "...", *lines[-7:]]:
        console.print(Text(line))
    console.save_svg(str(TARGET), title="jdl")


if __name__ == "__main__":
    main()
