"""Every example in the guides runs, and the API pages cover the package."""

import ast
import importlib
import re
import shlex
import sys
import tomllib
import types
from pathlib import Path

import pytest
import yaml

import jdl
from jdl import __version__
from jdl.cli.main import main

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "pages"
GUIDES = sorted((PAGES / "guides").glob("*.md"))
LONG = (  # whose parts are tested one by one elsewhere
    "calibrate_and_conform",
    "custom_optimizers",
    "diffusion",
    "distributed_training",
    "embeddings",
    "explain_a_prediction",
    "generated_images",
    "hyperparameter_search",
    "images_masks_boxes",
    "labeled_and_unlabeled",
    "pretrained_weights",
    "reports",
    "several_players",
    "smaller_models",
    "speech_synthesis",
    "style_transfer",
    "text_generation",
)
BLOCK = re.compile(
    r'^```(?P<kind>\w+)(?: title="(?P<title>[^"]+)")?\n(?P<text>.*?)^```$', re.M | re.S
)


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.slow if page.stem in LONG else ()) for page in GUIDES],
    ids=lambda page: page.stem,
)
def test_every_example_of_a_guide_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType(f"guide_{page.stem}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    text = page.read_text()
    ran = 0
    for block in BLOCK.finditer(text):
        if block["kind"] == "python":
            if block["title"]:
                Path(block["title"]).write_text(block["text"])
            # Blank lines before it, so that a traceback names the line of the page.
            before = "\n" * text.count("\n", 0, block.start("text"))
            exec(compile(before + block["text"], page, "exec"), vars(module))
            ran += 1
        elif block["kind"] == "bash":
            for line in block["text"].replace("\\\n", " ").splitlines():
                command, *arguments = shlex.split(line, comments=True)
                assert command == "jdl", "what is no jdl command is fenced as console"
                assert main(arguments) == 0, line
    assert ran


@pytest.mark.parametrize("name", LONG)
def test_what_a_long_guide_takes_from_the_package_is_there(name: str) -> None:
    text = (PAGES / "guides" / f"{name}.md").read_text()
    blocks = [block["text"] for block in BLOCK.finditer(text) if block["kind"] == "python"]
    for node in (node for block in blocks for node in ast.walk(ast.parse(block))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "jdl":
            module = importlib.import_module(node.module)
            for each in node.names:
                if not hasattr(module, each.name):  # a module that nothing has imported yet
                    importlib.import_module(f"{node.module}.{each.name}")
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "jdl":
            assert hasattr(jdl, node.attr)


def test_the_api_pages_show_every_public_module_once() -> None:
    shown = [
        name
        for page in (PAGES / "api").glob("*.md")
        for name in re.findall(r"^::: (\S+)$", page.read_text(), re.M)
    ]
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in (ROOT / "jdl").rglob("*.py")
        if not path.name.startswith("_")
    ]
    assert sorted(shown) == sorted(modules)


@pytest.mark.parametrize("folder", ["guides", "api"])
def test_the_first_page_and_the_menu_name_every_page(folder: str) -> None:
    pages = sorted(page.stem for page in (PAGES / folder).glob("*.md"))
    for text in (PAGES / "index.md", ROOT / "docs" / "mkdocs.yml"):
        assert sorted(re.findall(rf"{folder}/(\w+)\.md", text.read_text())) == pages, text.name


def test_the_citation_and_the_workflow_can_be_read() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__
    assert citation["license"] in (ROOT / "pyproject.toml").read_text()
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    assert jobs["checks"]["strategy"]["matrix"]["python"] == ["3.11", "3.12"]
    assert jobs["checks"]["steps"][-1]["run"] == ".ci/run"


@pytest.mark.parametrize(
    "package", sorted((ROOT / "jdl").glob("*/__init__.py")), ids=lambda p: p.parent.name
)
def test_a_package_has_one_description(package: Path) -> None:
    sentence = package.read_text().split('"""')[1].splitlines()[0]
    name = package.parent.name
    assert f"| `{name}/` | {sentence} |" in (ROOT / "CONTRIBUTING.md").read_text()
    assert f"\n{sentence}\n" in (PAGES / "api" / f"{name}.md").read_text()


def test_contributing_draws_the_layers_that_are_held() -> None:
    held = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    drawn = re.findall(r"^    (\w+(?: \| \w+)*)", _section("Who imports whom"), re.M)
    assert drawn == held["contracts"][0]["layers"]


def _section(title: str) -> str:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    return text.split(f"## {title}\n")[1].split("\n## ")[0]
