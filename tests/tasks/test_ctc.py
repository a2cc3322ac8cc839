"""CTC: its loss against PyTorch's, rows that do not fit, error rates, words with times, resume."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jdl
from jdl.audio import MelSpectrogram
from jdl.cli.main import main
from jdl.data import AudioFeatures, Buckets, Data, Pad, Scale, Speech, WordLevel
from jdl.data.arrays import ArraySource
from jdl.data.readers import audio_reader
from jdl.errors import UserError
from jdl.hooks import Checkpoint
from jdl.inference.transcribe import StreamingTranscriber
from jdl.models import SpeechEncoder
from jdl.optimizers import Adam
from jdl.parallel import Single
from jdl.tasks import CTC
from jdl.tasks.ctc import error_rates, word_boundaries
from tests.interruptions import InterruptAt, Killed, interrupt_at

RATE = 1000


def tones(rows):
    """A sound of words of 0.2 s, `low` and `high` tones, with silence between."""
    t = np.arange(200) / RATE
    known = {"low": np.sin(2 * np.pi * 60 * t), "high": np.sin(2 * np.pi * 250 * t)}
    parts = [np.concatenate([known[word] * 0.5, np.zeros(100)]) for word in rows]
    return np.concatenate([np.zeros(50), *parts]).astype(np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tones(Data):
    """Random strings of two tones."""

    validation_fraction: float = 0.1
    test_fraction: float = 0.2

    def load(self):
        draw = np.random.default_rng(0)
        rows = [draw.choice(["low", "high"], draw.integers(1, 4)).tolist() for _ in range(40)]
        audio, text = np.empty(40, object), np.array([" ".join(row) for row in rows])
        audio[:] = [tones(row) for row in rows]
        return {"train": ArraySource({"audio": audio, "text": text})}

    def full_name(self):
        return "tones"

    def reader(self):
        return audio_reader(RATE)


FORM = MelSpectrogram(sample_rate=RATE, n_fft=64, hop_length=25, n_mels=6, padding="causal")
EXPERIMENT = jdl.Experiment(
    model=SpeechEncoder(
        num_classes=3,
        embed_dim=16,
        kernel_size=3,
        dilations=(1, 1),
        stride=2,
        causal=True,
        lookahead=2,
    ),
    task=CTC(),
    data=Speech(
        Tones(),
        encoding=WordLevel(),
        length=4,
        transforms=(Pad(950, names=("audio",)),),
        device_transforms=(
            AudioFeatures(spectrogram=FORM, normalize=False),
            Scale(name="audio", offset=-6.0, divisor=4.0),
        ),
        buckets=Buckets((650,), names=("audio", "audio_mask"), by="audio_mask", window=2),
    ),
    optimizer=Adam(1e-2),
    steps=120,
    batch_size=8,
    strategy=Single(),
    hooks=(InterruptAt(), Checkpoint(every=8), InterruptAt()),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained run."""
    return jdl.train(EXPERIMENT, tmp_path_factory.mktemp("ctc") / "run")


def _batch(tokens, frames):
    draw = np.random.default_rng(1)
    logits = jnp.asarray(draw.normal(size=(len(tokens), 6, 4)), jnp.float32)
    kept = jnp.arange(6) < jnp.asarray(frames)[:, None]
    batch = {"tokens": jnp.asarray(tokens), "mask": jnp.ones(len(tokens), bool)}
    return logits, kept, batch


def test_the_loss_is_pytorchs():
    tokens = [[1, 2, 3], [2, 2, 0], [3, 0, 0]]
    logits, kept, batch = _batch(tokens, [6, 5, 4])
    found = CTC().loss_and_metrics((logits, kept), batch)
    # torch.nn.CTCLoss(reduction="none") of torch 2.13 gives these for the three rows.
    losses = [3.826202869415283, 4.191183567047119, 3.624877691268921]
    assert float(found["loss"].total) == pytest.approx(sum(losses), rel=1e-5)
    assert float(found["loss"].count) == 6


def test_the_loss_is_minus_the_log_of_all_paths():
    logits, kept, batch = _batch([[1, 1, 0]], [3])
    log_probs = jax.nn.log_softmax(logits)[0]
    # Three frames leave one path with a blank between two equal tokens.
    expected = -float(log_probs[0, 1] + log_probs[1, 0] + log_probs[2, 1])
    found = CTC().loss_and_metrics((logits, kept), batch)
    assert float(found["loss"].total) == pytest.approx(expected, rel=1e-5)


def test_rows_that_do_not_fit_are_counted_and_have_no_gradient():
    tokens = [[1, 1, 0], [1, 2, 3]]
    logits, kept, batch = _batch(tokens, [2, 6])

    def total(logits):
        found = CTC().loss_and_metrics((logits, kept), batch)
        return found["loss"].total, found

    gradient, found = jax.grad(total, has_aux=True)(logits)
    assert not gradient[0].any()
    assert gradient[1].any()
    assert found["unaligned"].compute() == 0.5
    assert found["loss"].count == 3
    assert float(found["loss"].total) < 100


def _distance(a, b):
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


def test_error_rates_are_edits_by_words_and_characters():
    pytest.importorskip("jiwer")
    expected, found = ["one two three", "six"], ["one too", "six six"]
    rates = error_rates(expected, found)
    words = sum(_distance(a.split(), b.split()) for a, b in zip(expected, found, strict=True))
    letters = sum(_distance(a, b) for a, b in zip(expected, found, strict=True))
    assert rates == pytest.approx({"wer": words / 4, "cer": letters / 16})
    assert error_rates(["one"], [""]) == {"wer": 1.0, "cer": 1.0}


def test_a_run_learns_and_transcribes_with_times(run, tmp_path, capsys):
    soundfile = pytest.importorskip("soundfile")
    scores = run.result["metrics"]
    assert scores["test"]["wer"] == 0
    assert scores["test"]["unaligned"] == 0
    for name, words in (("a", ["low", "high"]), ("b", ["high"] * 5)):
        soundfile.write(tmp_path / f"{name}.wav", np.repeat(tones(words), 2), 2 * RATE)
    soundfile.write(tmp_path / "silent.wav", np.zeros(500), RATE)
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    files = [str(tmp_path / f"{name}.wav") for name in ("a", "b", "silent", "broken")]
    capsys.readouterr()
    flags = ["--beam-width", "4", "--prior-weight", "0.1"]
    assert main(["transcribe", str(run.workdir), *files, *flags]) == 1
    out, complaints = capsys.readouterr()
    first, second, silent = map(json.loads, out.splitlines())
    assert first["text"] == "low high"
    assert [word["word"] for word in first["words"]] == ["low", "high"]
    assert first["words"][0]["end"] == pytest.approx(0.3, abs=0.08)
    assert second["text"] == " ".join(["high"] * 5)
    assert (silent["text"], silent["words"]) == ("", [])
    assert "broken.wav cannot be read" in complaints
    assert main(["transcribe", str(run.workdir), files[3]]) == 2


def test_a_stream_gives_what_the_whole_sound_gives(run):
    wave = tones(["high", "low", "low"])
    padded = Pad(950, names=("audio",))({"audio": wave})
    whole = run.predict_rows({name: array[None] for name, array in padded.items()})
    stream = StreamingTranscriber(run)
    parts = [stream.log_probs(wave[begin : begin + 100]) for begin in range(0, len(wave), 100)]
    found = np.concatenate([*parts, stream.flush()])
    count = int(whole["mask"].sum())
    np.testing.assert_allclose(found[:count], whole["log_probs"][0, :count], atol=1e-5)
    stream = StreamingTranscriber(run)
    tokens = stream.feed(wave[:333]) + stream.feed(wave[333:]) + stream.finish()
    assert run.experiment.data.decode(np.array(tokens)) == "high low low"


def test_a_resumed_run_with_buckets_is_bit_equal(run, tmp_path):
    with pytest.raises(Killed):
        jdl.train(interrupt_at(EXPERIMENT, 30), tmp_path / "run")
    resumed = jdl.train(EXPERIMENT, tmp_path / "run")
    for a, b in zip(jax.tree.leaves(run.params), jax.tree.leaves(resumed.params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_words_end_where_it_is_quiet():
    wave = tones(["low", "high"])
    assert word_boundaries(wave, [150, 450], 50) == pytest.approx([50, 300, 550], abs=40)
    assert word_boundaries(wave, [], 50) == []
    assert len(word_boundaries(np.zeros(10), [3], 50)) == 2


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([[1, 3]], "holds 3, where the model has the labels 0 to 2: set model.num_classes to 4"),
        ([[0, 1]], "has a 0 before other tokens at row 0"),
        ([1], "where CTC needs integers"),
    ],
)
def test_wrong_tokens(tokens, message):
    batch = {
        "audio": np.zeros((1, 5, 2), np.float32),
        "audio_mask": np.ones((1, 5), bool),
        "tokens": np.array(tokens),
    }
    outputs = {"log_probs": jax.ShapeDtypeStruct((1, 3, 3), np.float32)}
    with pytest.raises(UserError, match=message):
        CTC().validate_batch(batch, outputs, "split 'train'")


def test_a_prior_needs_a_beam():
    with pytest.raises(UserError, match="above 1"):
        CTC(prior_weight=0.5)
