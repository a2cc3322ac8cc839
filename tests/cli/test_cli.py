"""The command line: commands, help and errors."""

import importlib.metadata
import re
from pathlib import Path

import pytest

import jdl
from jdl.config.overrides import paths


def test_version(command):
    assert command("--version") == (0, f"jdl {jdl.__version__}\n", "")
    assert importlib.metadata.version("jdl-research") == jdl.__version__


def test_help(command):
    names = (
        "train",
        "tune",
        "evaluate",
        "predict",
        "translate",
        "transcribe",
        "reproduce",
        "report",
        "compare",
        "find-lr",
        "find-batch",
        "list",
        "prepare",
    )
    for words in ([], ["--help"], ["-h"], ["help"]):
        code, out, err = command(*words)
        assert (code, err) == (0, "")
        assert all(f"jdl {name} " in out or f"jdl {name}\n" in out for name in names)
        assert "trusted like a script" in out
    options = {
        "train": ["EXPERIMENT", "--workdir", "--seeds"],
        "tune": ["EXPERIMENT", "--space", "--sampler", "--trials", "--workers", "--refit"],
        "evaluate": ["RUN", "--split", "--experiment", "trust"],
        "predict": ["RUN", "FILE", "--experiment", "trust"],
        "translate": ["RUN", "--text", "--experiment", "trust"],
        "transcribe": ["RUN", "FILE", "--beam-width", "--prior-weight", "trust"],
        "find-lr": ["EXPERIMENT", "--low", "--high", "--steps", "--png"],
        "find-batch": ["EXPERIMENT", "--largest"],
        "reproduce": ["RUN", "--all", "--tolerance", "--experiment", "trust"],
        "report": ["DIR", "--out", "--experiment", "trust"],
        "compare": ["RUN", "--out"],
        "prepare": ["NAME", "--from", "--data-dir"],
    }
    for name in names:
        code, out, err = command(name, "--help")
        assert (code, err) == (0, "")
        assert all(option in out for option in options.get(name, []))


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("trian digits_mlp", "no command 'trian'; did you mean 'train'"),
        ("--verison", "--verison"),
        ("train", "EXPERIMENT"),
        ("train digits_mpl", "no experiment 'digits_mpl'; did you mean 'digits_mlp'"),
        ("train digits_mlp --epoch 3", "did you mean 'epochs'"),
        ("train digits_mlp --modle.widths 3", "did you mean 'model'"),
        ("train digits_mlp --model.width 3", "did you mean 'widths'"),
        ("train digits_mlp --model.widths.3 3", "1 element"),
        ("train digits_mlp --optimizer sdg", "did you mean 'sgd'"),
        ("train digits_mlp --data.pipline grain", "did you mean 'pipeline'"),
        ("train digits_mlp --workdri x", "did you mean 'workdir'"),
        ("train digits_mlp --sseeds 3", "did you mean 'seeds'"),
        ("train digits_mlp --epochs three", "epochs: 'three' is not of type"),
        ("train digits_mlp --batch-size=1.5", "batch_size: '1.5' is not of type int"),
        ("train digits_mlp --precision fp8", "precision: 'fp8' is not of type fp32|bf16"),
        ("train digits_mlp --steps", "steps"),
        ("train digits_mlp --steps -3", "steps must be positive, not -3"),
        ("train digits_mlp --seeds two", "two"),
        ("train digits_mlp --seeds 0", "seeds must be at least 1, not 0"),
        ("train digits_mlp extra", "extra"),
        ("train digits_mlp -x", "-x"),
        ("train digits_mlp --distributed", "need one --workdir"),
        ("evaluate", "RUN"),
        ("evaluate nowhere", "nowhere is no run directory"),
        ("evaluate . --splt test", "no option --splt; did you mean 'split'"),
        ("evaluate . --epochs 3", "no option --epochs"),
        ("predict", "RUN"),
        ("predict nowhere", "at least one FILE"),
        ("predict nowhere x.png", "nowhere is no run directory"),
        ("predict . x.png --epochs 3", "no option --epochs"),
        ("verify . a.png", "verify needs two files, A and B"),
        ("verify . a.png b.png --threshold 2", "from -1 to 1, not 2"),
        ("translate", "RUN"),
        ("translate nowhere", "nowhere is no run directory"),
        ("transcribe nowhere a.wav", "nowhere is no run directory"),
        ("translate . --text x --text y", "--text is given twice"),
        ("translate . --txet x", "no option --txet; did you mean 'text'"),
        ("find-lr", "EXPERIMENT"),
        (
            "find-lr digits_mlp --epoch 3",
            "`jdl find-lr` nor an experiment has a field 'epoch'; did",
        ),
        ("find-lr digits_mlp --lwo 3", "did you mean 'low'"),
        ("find-lr digits_mlp --low 3 --high 1", "not from 3 to 1"),
        ("find-batch digits_mpl", "did you mean 'digits_mlp'"),
        ("find-batch digits_mlp --modle.widths 3", "did you mean 'model'"),
        ("find-batch digits_mlp --largest 1", "the largest batch size to try is 1"),
        ("reproduce", "either a run directory or --all"),
        ("reproduce . --all", "either a run directory or --all"),
        ("reproduce --al", "no option --al; did you mean 'all'"),
        ("reproduce . --tolerance small", "small"),
        ("report", "DIR"),
        ("report nowhere", "nowhere is no run directory"),
        ("report . --otu x", "no option --otu; did you mean 'out'"),
        ("compare", "one run directory or more"),
        ("compare nowhere", "nowhere is no run directory"),
        ("prepare minst", "unknown data set 'minst'; did you mean 'mnist'"),
        ("prepare mnist --form x", "no option --form; did you mean 'from'"),
        ("prepare mnist --from nowhere", "nowhere"),
        ("list --all", "no option --all"),
    ],
)
def test_a_mistake_takes_one_sentence(command, tmp_path, words, complaint):
    code, out, err = command(*words.split())
    assert code != 0
    assert out == ""
    (sentence,) = err.splitlines()
    assert sentence.startswith("jdl: ")
    assert complaint in sentence
    assert list(tmp_path.iterdir()) == []


def test_a_value_may_begin_like_an_option(command):
    code, _, err = command("evaluate", "--split=--test", "nowhere")
    assert (code, err) == (2, "jdl: nowhere is no run directory (it has no experiment.json)\n")


def test_help_of_an_experiment_teaches_every_field(command):
    for name in ("digits_cnn", "mnist_mlp"):
        code, out, err = command("train", name, "--help")
        assert (code, err) == (0, "")
        lines = out.splitlines()
        experiment = jdl.load(name).experiment
        assert lines[0] == jdl.load(name).path.read_text().strip('"').splitlines()[0]
        for path in paths(experiment):
            flag = f"  --{path.replace('_', '-')} "
            (at,) = [i for i, line in enumerate(lines) if line.startswith(flag)]
            if not path.split(".")[-1].isdigit():
                assert re.match(r" {6}\S", lines[at + 1]), f"{flag} says not what it means"
    (at,) = [i for i, line in enumerate(lines) if line.startswith("  --batch-size ")]
    assert lines[at] == "  --batch-size int  [32]"
    assert lines[at + 1] == "      examples per optimizer step, over all devices"
    assert any(re.match(r"  --optimizer \S*sgd\|.*\[adam\]$", line) for line in lines)


def test_a_file_with_a_mistake(command, tmp_path):
    (tmp_path / "broken.py").write_text("import jdl\n\nexperiment = jdl.Experimnt()\n")
    code, out, err = command("train", "broken.py")
    assert (code, out) == (2, "")
    (sentence,) = err.splitlines()
    assert sentence.startswith("jdl: broken.py, line 3: AttributeError: ")
    assert [path.name for path in Path().iterdir()] == ["broken.py"]
