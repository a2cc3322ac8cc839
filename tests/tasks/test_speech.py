"""Speech synthesis: what is heard of spectra, words of a text, and `jdl speak`."""

import math
import re
import wave

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jdl
from jdl.audio import MelSpectrogram
from jdl.data import Arrays
from jdl.diffusion import DPMSolver
from jdl.errors import UserError
from jdl.inference.speak import speak, trimmed, word_labels
from jdl.models import CNN, ConditionalUNet
from jdl.optimizers import Adam
from jdl.tasks import Classification, SampleScores, SpeechSynthesis
from jdl.tasks.speech import accuracy

MEL = MelSpectrogram(n_fft=128, hop_length=64, n_mels=8, floor=1e-4)
NAMES = ("low ann", "low bob", "high ann", "high bob")
HERTZ = np.array([400, 500, 1500, 1900])


def spectra(label):
    time = np.arange(15 * 64) / MEL.sample_rate
    waves = np.sin(2 * np.pi * HERTZ[label][:, None] * time) * (time < 0.09)
    return np.asarray(MEL.log_mel(jnp.float32(waves)))[..., None]


def make_experiment(model, task, **settings):
    label = np.arange(32) % 4
    arrays = {"image": spectra(label), "label": label}
    data = Arrays({"train": arrays, "test": arrays}, class_names=NAMES, validation_fraction=0.0)
    return jdl.Experiment(
        model, task=task, data=data, optimizer=Adam(1e-2), batch_size=16, hooks=(), **settings
    )  # fmt: skip


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    """A run that has hardly learned to speak, scored by one that has learned to listen."""
    folder = tmp_path_factory.mktemp("runs")
    judge = CNN(channels=(4,), dense=(), num_classes=4)
    jdl.train(make_experiment(judge, Classification(), steps=60), folder / "judge")
    task = SpeechSynthesis(
        mel=MEL,
        num_iters=4,
        value_range=(math.log(MEL.floor), 6.0),
        num_classes=4,
        sampler=DPMSolver(2),
        scores=SampleScores(judge, run=str(folder / "judge"), subset_size=16),
    )
    model = ConditionalUNet(channels=(8,), num_heads=0, embed_dim=8)
    experiment = make_experiment(model, task, steps=4)
    return jdl.train(experiment, folder / "tones")


def test_scores_are_of_what_is_heard(spoken):
    scores = spoken.result["metrics"]["test"]
    assert scores["real_recognizer_accuracy"] == scores["real_speaker_accuracy"] == 1
    assert scores["griffin_lim_accuracy"] == 1, "an inverted tone is still that tone"
    assert 0 <= scores["recognizer_accuracy"] <= 1
    assert scores["real_nearest_distance"] == pytest.approx(0, abs=0.1), "they are the same"
    assert scores["nearest_distance"] > 1
    assert spoken.higher_is_better("recognizer_accuracy")


def test_spectra_of_sounds_are_the_spectra(spoken):
    label = np.arange(4)
    given = jnp.asarray(spectra(label))
    task = spoken.experiment.task
    heard = task.heard(given)
    assert heard.shape == given.shape
    assert float(heard.min()) >= task.value_range[0] - 1e-5
    # Eight bands leave the frequency open, but not whether it is low or high.
    apart = np.abs(np.asarray(heard)[:, None] - np.asarray(given)[None]).mean((2, 3, 4))
    np.testing.assert_array_equal(apart.argmin(1) // 2, label // 2)


def test_a_group_of_classes_has_the_sum_of_their_probabilities():
    chances = np.array([[0.4, 0.3, 0.3, 0.0], [0.1, 0.2, 0.3, 0.4]])
    groups = np.array(["a", "b", "b", "a"])
    assert accuracy(chances, np.array([0, 3]), groups) == 0.5
    assert accuracy(chances, np.array([1, 3]), groups) == 1.0


def test_words_of_a_text_are_classes():
    digits = [f"{digit} {speaker}" for digit in range(10) for speaker in ("ann", "bob")]
    assert word_labels("31 4", "bob", digits) == [7, 3, 9]
    assert word_labels("0", None, digits) == [0]
    assert word_labels("low high", "bob", NAMES) == [1, 3]


@pytest.mark.parametrize(
    ("text", "speaker", "complaint"),
    [
        ("low", "bod", r"no speaker 'bod' \(there are ann, bob\); did you mean 'bob'"),
        ("  ", "bob", "nothing to say"),
        ("low hihg", "ann", r"ann does not say 'h' \(but low, high\)"),
    ],
)
def test_unknown_words_and_speakers_are_named(text, speaker, complaint):
    with pytest.raises(UserError, match=complaint):
        word_labels(text, speaker, NAMES)


def test_quiet_ends_are_cut_off():
    sound = np.float32([0, 0.001, 0.5, 0, -1, 0.01, 0])
    np.testing.assert_array_equal(trimmed(sound), sound[2:5])
    assert len(trimmed(np.zeros(5, np.float32))) == 0


def test_a_text_is_said_word_by_word(spoken):
    key = jax.random.key(1)
    labels = [1, 3, 1]
    words = spoken.sample(3, key, label=labels)
    whole = speak(spoken, "low high low", "bob", key, pause=0.05)
    silence = np.zeros(400, np.float32)
    parts = [trimmed(wave) for wave in words.waves]
    expected = np.concatenate([parts[0], silence, parts[1], silence, parts[2]])
    np.testing.assert_array_equal(whole.waves[0], expected)
    alone = spoken.sample(1, key, label=1).waves[0]
    np.testing.assert_allclose(words.waves[0], alone, atol=1e-4)
    with pytest.raises(UserError, match="there are 2 labels for 3 samples: give one for each"):
        spoken.sample(3, label=[0, 1])
    with pytest.raises(UserError, match=r"the label of samples is 4, outside 0\.\.3"):
        spoken.sample(2, label=[0, 4])


def test_the_command_writes_a_sound(spoken, command, tmp_path):
    run = spoken.workdir
    code, out, err = command("speak", run, "low high", "--speaker", "ann", "--out", "a.wav")
    assert (code, out, err) == (0, "a.wav\n", "")
    with wave.open("a.wav") as file:
        assert (file.getframerate(), file.getnchannels()) == (8000, 1)
        assert file.getnframes() > 800
    for words, complaint in (
        (["low", "--out", "a.mp3"], "--out a.mp3 must end in .wav"),
        (["low", "--out", "b/a.wav"], "there is no directory b to write a.wav into"),
        (["low", "--speaker", "eve"], "there is no speaker 'eve'"),
        (["low", "--pause", "-1"], "the pause is at least 0 seconds"),
    ):
        code, out, err = command("speak", run, *words)
        assert (code, out) == (2, "")
        assert re.search(re.escape(complaint), err)
    other = run.parent / "judge"
    assert "the task Classification does not speak" in command("speak", other, "low")[2]
