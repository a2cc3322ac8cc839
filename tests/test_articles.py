"""The page of what the articles name: every command on it exists, with its options and fields."""

import re
import shlex
from pathlib import Path

import pytest

from jdl.cli.arguments import parse
from jdl.cli.commands import COMMANDS
from jdl.config.experiment_file import load
from jdl.config.overrides import override

PAGE = (Path(__file__).parents[1] / "docs" / "pages" / "articles.md").read_text()
COMMAND_LINES = sorted(set(re.findall(r"`(jdl [a-z-]+[^`]*)`", PAGE)))

# What the articles name, and the page must have.
PHRASES = """
weights and biases; feed-forward; convolutional; AlexNet; human-level accuracy; SimpleRNN; LSTM;
GRU; internal memory; generative adversarial networks; transformers; BERT; GPT; embeddings;
forward propagation; mean squared error; cross-entropy; binary and sparse; backpropagation;
gradient descent; SGD; mini-batch; Adam; sigmoid; ReLU; tanh; softmax; compile, fit, evaluate;
validation set; dropout; L1; L2; batch normalization; early stopping; data augmentation; rotation;
shifts; shear; zoom; flip; fill; more data; over- and underfitting; learning rate; batch size;
epochs; number of layers; grid; random; Bayesian; image classification; digits; cats and dogs;
faces; animals; facial recognition; object detection; video streams; autonomous driving;
segmentation; medical image analysis; cancerous tissue; edges in initial layers; sentiment
analysis; reviews; social media; machine translation; text generation; content generation;
chatbots; virtual assistants; voice-to-text; transcription; text-to-speech; image synthesis;
modifying existing ones; art; style transfer; data generation in medical imaging; healthcare;
diagnostics; personalized treatment; medical imaging; fraud detection; algorithmic trading;
recommendation; climate; renewable energy; AlphaFold; new medicines; material science;
linguistics; semi-supervised; unsupervised; transfer learning; as more data is provided; GPUs;
TPUs; reducing their computational and data requirements; interpretability; black box; ethics and
bias; detection; mitigation; TensorFlow; PyTorch; Keras; MXNet; FastAI; KerasTuner; scikit-learn;
NumPy; Pandas; Matplotlib; Seaborn; Jupyter; Colab; selection criteria for different problems;
classic techniques; Goodfellow; Nielsen; Krizhevsky; Hochreiter and Schmidhuber
"""


def test_the_page_has_every_phrase() -> None:
    text = " ".join(PAGE.split()).lower()
    missing = [
        phrase
        for phrase in (" ".join(each.split()) for each in PHRASES.split(";"))
        if not all(part.strip().lower() in text for part in phrase.split(", "))
    ]
    assert missing == []


def test_every_row_has_a_command_or_a_reason() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and "---" not in line]
    rows = [line for line in rows if not line.startswith("| named")]
    assert len(rows) > 60
    for row in rows:
        assert "`" in row.split("|")[2] or "not claimed, because" in row, row


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_a_command_resolves(line: str) -> None:
    _, command, *words = shlex.split(line)
    function = COMMANDS[command]
    positional, named = parse(command, function, words)
    if command not in ("train", "tune", "plan", "find-lr", "find-batch", "curve"):
        return
    name = str(positional[0])
    if name.endswith(".py"):  # the reader's own
        return
    experiment = load(name).experiment
    override(experiment, named.get("overrides") or {})
