"""The notebooks run from top to bottom, on tiny settings."""

import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "experiments" / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=pytest.mark.slow if path.stem == "images" else ())
        for path in NOTEBOOKS
    ],
    ids=lambda path: path.stem,
)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    names = {"__name__": "__main__"}
    cells = json.loads(path.read_text())["cells"]
    for index, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            source = "".join(cell["source"])
            exec(compile(source, f"{path.name}, cell {index}", "exec"), names)
            if "parameters" in cell["metadata"].get("tags", ()):
                names["epochs"] = 1
    matplotlib.pyplot.close("all")
    assert names["epochs"] == 1


def test_there_are_three():
    assert [path.stem for path in NOTEBOOKS] == ["first_network", "images", "sequences"]
