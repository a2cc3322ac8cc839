"""What error messages share."""

import pytest

from jdl import errors
from jdl.errors import install_command


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Puts the package into a folder, the parent of which is returned."""
    monkeypatch.setattr(errors, "__file__", str(tmp_path / "jdl" / "errors.py"))
    return tmp_path


def test_in_its_source_tree_an_extra_is_installed_from_there(installed, monkeypatch):
    (installed / "pyproject.toml").write_text('[project]\nname = "jdl-research"\n')
    monkeypatch.chdir(installed.parent)
    assert install_command("report") == f'pip install ".[report]" in {installed}'
    monkeypatch.chdir(installed)
    assert install_command("search-gp") == 'pip install ".[search-gp]"'


@pytest.mark.parametrize("project", [None, '[project]\nname = "another"\n'])
def test_elsewhere_an_extra_is_installed_by_the_name_of_the_distribution(
    installed, project, tmp_path_factory, monkeypatch
):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    if project:  # of a project that keeps its packages beside its own files
        (installed / "pyproject.toml").write_text(project)
    assert install_command("report") == 'pip install "jdl-research[report]"'
