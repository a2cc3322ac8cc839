"""`jdl generate`: streamed text, options and errors."""

import io
import re
import shutil
import sys
from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jdl
from jdl.data import Arrays, Streams, Tokens
from jdl.data.tokenizers import Bytes, CharTokenizer
from jdl.decoding import Sampling
from jdl.inference import generate as generation
from jdl.inference.generate import generate, open_for_generation
from jdl.models import GPT, RecurrentLM
from jdl.optimizers import Adam
from jdl.parallel import Pmap, Single
from jdl.tasks import LanguageModeling
from jdl.trainer import sampling

LINE = "sing a song of six\n"
FILE = f'''"""A model that knows a line by heart."""

import numpy as np

from jdl import Experiment
from jdl.data import Arrays, Tokens
from jdl.models import GPT
from jdl.optimizers import Adam
from jdl.parallel import Single
from jdl.tasks import LanguageModeling

TEXT = {{"text": np.array([{LINE!r} * 40], object)}}

experiment = Experiment(
    model=GPT(vocab_size=12, max_position_embeddings=16, num_layers=1, num_heads=2, embed_dim=32),
    task=LanguageModeling(),
    data=Tokens(Arrays({{"train": TEXT, "validation": TEXT}}), length=16, stride=2),
    optimizer=Adam(1e-2), strategy=Single(), hooks=(), steps=120, batch_size=16,
)
'''


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    """The directory of a run whose model knows a line by heart."""
    folder = tmp_path_factory.mktemp("line")
    (folder / "line.py").write_text(FILE)
    file = jdl.load(folder / "line.py")
    jdl.train(file.experiment, folder / "run", file=file)
    return folder / "run"


def characters(text, **options):
    parts = {"train": {"text": np.array([text], object)}}
    return Tokens(Arrays(parts | {"validation": parts["train"]}), length=8, **options)


def opened(workdir, **changes):
    """A run of one step, opened again."""
    settings = {
        "model": GPT(
            vocab_size=5, max_position_embeddings=8, num_layers=1, num_heads=1, embed_dim=8
        ),
        "task": LanguageModeling(),
        "data": characters("abcd\n" * 20),
        "optimizer": Adam(1e-3),
        "strategy": Single(),
        "hooks": (),
        "steps": 1,
        "batch_size": 4,
    }
    experiment = jdl.Experiment(**settings | changes)
    jdl.train(experiment, workdir)
    return open_for_generation(workdir, experiment)


def test_it_goes_on_with_what_it_has_learned(line, command):
    text = LINE * 5
    for prompt, count in (("sing a s", 30), ("of", 5), (LINE[:16], 12)):
        code, out, err = command(
            "generate", line, "--prompt", prompt, "--max-new-tokens", count, "--temperature", 0
        )
        begin = text.index(prompt)
        assert (code, err) == (0, "")
        assert out == text[begin : begin + len(prompt) + count] + "\n"


def test_without_a_prompt_it_begins_a_line(line, command):
    code, out, _ = command("generate", line, "--max-new-tokens", 6, "--temperature", 0)
    assert (code, out) == (0, LINE[:6] + "\n")


def test_jdl_sample_writes_the_same_texts_into_files(line, command, tmp_path):
    _, out, _ = command("generate", line, "--max-new-tokens", 200, "--samples", 2, "--seed", 3)
    texts = out.split("\n---------------\n")
    code, out, _ = command("sample", line, "--count", 2, "--seed", 3, "--out", tmp_path / "texts")
    paths = [tmp_path / "texts" / f"{index:05d}.txt" for index in range(2)]
    assert (code, out.split()) == (0, list(map(str, paths)))
    for path, text in zip(paths, texts, strict=True):
        assert path.read_text().rstrip() == text.rstrip()
        assert len(path.read_text()) == 201
    assert not list(jdl.open(line).workdir.glob("samples"))


def test_samples_are_parted_and_their_seed_decides(line, command):
    words = ("generate", line, "--prompt", "a", "--max-new-tokens", 12, "--samples", 3)
    words += ("--temperature", 3, "--top-k", 11, "--top-p", 0.99)
    code, out, _ = command(*words)
    parts = out.removesuffix("\n").split("\n---------------\n")
    assert (code, len(set(parts))) == (0, 3)
    assert {(part[0], len(part)) for part in parts} == {("a", 13)}
    assert command(*words)[1] == out
    assert command(*words, "--seed", 1)[1] != out
    # The first of several is the one that is written alone.
    assert command(*words[:-8], "--samples", 1, *words[-6:])[1] == parts[0] + "\n"


def test_text_is_printed_as_it_is_written(line, command, monkeypatch):
    class Terminal(io.StringIO):
        def __init__(self):
            super().__init__()
            self.flushed = []

        def flush(self):
            self.flushed.append(self.getvalue())

    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    from jdl.cli.main import main

    assert main(["generate", str(line), "--prompt", "si", "--max-new-tokens", "20"]) == 0
    lengths = [len(text) for text in terminal.flushed[:3]]
    assert lengths == [10, 17, 22]  # the context of 16 is full at the second


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--prompt", ""), "the prompt is empty"),
        (("--prompt", "sing a song of six"), "the prompt has 18 tokens, more than .* of 16"),
        (("--prompt", "a \udcff"), "a text is not UTF-8: .* can't encode .* in position 2"),
        (("--seed", 2**63), "the seed must lie between 0 and .*, but is 9223372036854775808"),
        (("--prompt", "a song of 6"), "the text contains '6', which the training"),
        (("--max-new-tokens", 0), "must be at least 1, not 0"),
        (("--samples", 0), "the number of samples must be at least 1, not 0"),
        (("--temperature", -1), "the temperature must be 0 or more, not -1"),
        (("--top-k", 0), "top_k must leave 1 token or more, not 0"),
        (("--top-p", 0), r"top_p is a probability in \(0, 1\], not 0"),
        (("--top-p", 1.01), "not 1.01"),
        (("--tempreature", 1), "no option --tempreature; did you mean 'temperature'"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_a_sentence(line, command, words, message):
    code, out, err = command("generate", line, *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert re.search(message, err)


def test_what_cannot_be_printed_shows_as_a_question_mark(line, monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr("jdl.inference.generate.generate", lambda *args: iter([["n\xe9e"]]))
    from jdl.cli.main import main

    assert main(["generate", str(line)]) == 0
    terminal.flush()
    assert terminal.buffer.getvalue() == b"n?e\n"


def test_a_text_by_an_unfinished_run_is_said_to_be(line, command, tmp_path):
    shutil.copytree(line, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    words = ("--prompt", "si", "--max-new-tokens", 4, "--seed", 1)
    code, out, err = command("generate", tmp_path / "run", *words)
    assert (code, out) == command("generate", line, *words)[:2]
    assert err == f"{tmp_path / 'run'} is not finished: this is its newest checkpoint\n"


def test_a_run_of_another_task_is_refused(trained, command):
    code, out, err = command("generate", trained)
    assert (code, out) == (2, "")
    assert (
        "is a run of the task Classification; texts are written by models of the task Lang" in err
    )
    code, _, err = command("generate", "nowhere")
    assert (code, err) == (2, "jdl: nowhere is no run directory (it has no experiment.json)\n")


def test_data_without_a_tokenizer_are_refused(tmp_path):
    windows = {"tokens": np.zeros((8, 9), np.int32)}
    data = Arrays({"train": windows, "validation": windows})
    with pytest.raises(jdl.UserError, match="has no tokenizer"):
        opened(tmp_path / "run", data=data)


def test_a_tokenizer_that_does_not_fit_the_model_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Tokens, "tokenizer", lambda data: Bytes())
    with pytest.raises(jdl.UserError, match="has 256 tokens, the model 5"):
        opened(tmp_path / "run")


def test_tokens_that_the_tokenizer_does_not_know_are_not_drawn(tmp_path):
    model = GPT(vocab_size=40, max_position_embeddings=8, num_layers=1, num_heads=1, embed_dim=8)
    run, tokenizer = opened(tmp_path / "run", model=model)
    assert (tokenizer.vocab_size, run.prediction.shape[-1]) == (5, 40)
    text = "".join(piece[0] for piece in generate(run, tokenizer, "ab", 60, seed=1))
    assert (len(text), set(text)) == (60, set("abcd\n"))


@pytest.mark.parametrize(
    ("strategy", "carry"), [(Single(), True), (Pmap(), False)], ids=["single", "pmap"]
)
def test_a_recurrent_model_writes_on_data_in_streams(tmp_path, strategy, carry):
    data = characters("abcd\n" * 40)
    data = Streams(data.text, length=8, num_streams=4, validation_length=16)
    model = RecurrentLM(vocab_size=5, hidden_size=8, num_layers=1, carry=carry)
    run, tokenizer = opened(tmp_path / "run", model=model, data=data, strategy=strategy)
    greedy = Sampling(temperature=0.0)
    found = "".join(piece[0] for piece in generate(run, tokenizer, "ab", 12, greedy))
    params = jax.device_get(run.gather_state().params)
    known, forward = tokenizer.encode("ab"), jax.jit(model.apply)
    for _ in range(12):
        logits = forward({"params": params}, jnp.array([known + [0] * (14 - len(known))]))
        known.append(int(logits[0, len(known) - 1].argmax()))
    assert found == tokenizer.decode(known)[2:]


class Bigrams(nn.Module):
    """Logits by the last token alone: after each the next in the alphabet, nearly surely."""

    @nn.compact
    def __call__(self, tokens, targets=None, weights=None):
        scale = self.param("scale", nn.initializers.constant(50.0), ())
        logits = scale * jnp.eye(5)[(tokens + 1) % 5]
        if targets is None:
            return logits
        chances = jnp.take_along_axis(nn.log_softmax(logits), targets[..., None], -1)[..., 0]
        return -(chances * (1.0 if weights is None else weights)).sum()


def test_a_model_that_reads_nothing_but_tokens_writes_by_its_probabilities(tmp_path):
    parts = {"train": {"text": ["ab\ncd" * 5]}, "validation": {"text": ["abcd\n"]}}
    data = Tokens(Arrays(parts), length=4)
    assert data.tokenizer().characters == "\nabcd"
    experiment = jdl.Experiment(
        model=Bigrams(), task=LanguageModeling(), data=data, steps=1, batch_size=2, hooks=()
    )
    run = jdl.train(experiment, tmp_path / "run")
    for seed in (0, 1):
        pieces = generate(run, data.tokenizer(), None, 11, seed=seed)
        assert "".join(text for (text,) in pieces) == "abcd\nabcd\na"


def test_a_text_without_line_breaks_begins_after_its_first_character(tmp_path):
    run, tokenizer = opened(tmp_path / "run", data=characters("abcde" * 20))
    greedy = Sampling(temperature=0.0)
    texts = ["".join(p[0] for p in generate(run, tokenizer, x, 5, greedy)) for x in (None, "a")]
    assert texts[0] == texts[1]


def test_a_character_of_several_bytes_is_held_back_until_it_is_whole():
    made = np.array([list("é€ö".encode())])
    chunks = iter([made[:, :1], made[:, 1:4], made[:, 4:5], made[:, 5:6]])
    pieces = list(generation.decoded(Bytes(), list(b"caf"), chunks, 1, None))
    assert pieces == [[""], ["é"], ["€"], [""], ["\ufffd"]]


def test_of_a_text_that_has_ended_nothing_more_is_shown():
    letters = CharTokenizer("ab.d")
    chunks = iter([np.array([[0, 1], [2, 2]]), np.array([[2, 2], [2, 2]])])
    pieces = list(generation.decoded(letters, [3], chunks, 2, end=2))
    assert pieces == [["ab", "."], [".", ""], ["", ""]]


def test_averaged_weights_write(tmp_path):
    optimizer = replace(Adam(1e-1), ema_decay=0.5)
    run, tokenizer = opened(tmp_path / "run", optimizer=optimizer, steps=5)
    given = []
    original = sampling.stream

    def spy(model, params, *args, **options):
        given.append(params)
        return original(model, params, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "stream", spy)
        list(generate(run, tokenizer, "a", 1))
    expected = run.evaluation_state(run.state).params
    jax.tree.map(np.testing.assert_array_equal, given[0], expected)
    plain, _ = opened(tmp_path / "plain", optimizer=Adam(1e-1), steps=5)
    assert (given[0]["norm"]["bias"] != plain.state.params["norm"]["bias"]).any()
