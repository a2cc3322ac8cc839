"""A model card has the fields of Hugging Face's, filled from the record."""

import json
import re

import pytest
import yaml

FIELDS = (
    "Model Details",
    "Model Description",
    "Uses",
    "Direct Use",
    "Out-of-Scope Use",
    "Bias, Risks, and Limitations",
    "How to Get Started with the Model",
    "Training Details",
    "Training Data",
    "Training Procedure",
    "Training Hyperparameters",
    "Speeds, Sizes, Times",
    "Evaluation",
    "Testing Data, Factors & Metrics",
    "Results",
    "Environmental Impact",
    "Technical Specifications",
    "Model Architecture and Objective",
    "Compute Infrastructure",
    "Model Card Contact",
)


def test_a_card_is_filled_from_the_record(run, command):
    assert command("calibrate", run)[0] == 0
    assert command("audit", run, "--group", "sex", "--replicas", 20)[0] == 0
    code, out, _ = command("card", run)
    assert code == 0
    assert out.strip() == str(run / "README.md")
    text = (run / "README.md").read_text()
    assert [title for title in FIELDS if not re.search(f"^#+ {title}$", text, re.M)] == []
    _, block, body = text.split("---\n", 2)
    known = yaml.safe_load(block)
    assert known["library_name"] == "jdl"
    (entry,) = known["model-index"]
    (results,) = entry["results"]
    assert results["dataset"]["split"] == "test"
    scores = json.loads((run / "result.json").read_text())["metrics"]["test"]
    own = {each["type"]: each["value"] for each in results["metrics"]}
    assert own == pytest.approx(scores, rel=1e-5)
    assert f"{scores['accuracy']:.4f}" in body
    assert "| sex | demographic_parity[yes] |" in body
    assert "By sex, accuracy is lowest for" in body
    assert "Conformal sets contain the true class in" in body
    assert json.loads((run / "result.json").read_text())["params_sha256"] in body
    assert command("card", run)[0] == 0  # its own is replaced


def test_an_edited_card_stays_and_an_unfinished_run_has_none(run, command):
    (run / "README.md").write_text("mine")
    code, _, said = command("card", run)
    assert (code, (run / "README.md").read_text()) == (2, "mine")
    assert "was not written by `jdl card`: name another with --out" in said
    assert command("card", run, "--out", run / "CARD.md")[0] == 0
    (run / "result.json").unlink()
    assert "is not finished" in command("card", run)[2]
    assert "is no run directory" in command("card", run.parent)[2]
