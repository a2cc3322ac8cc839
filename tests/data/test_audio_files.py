"""Data sets of sound files: folders of classes, CSV files of transcripts, and their faults."""

import dataclasses
import io
import logging
import os
from pathlib import Path

import numpy as np
import pytest

import jdl
from jdl.audio import MelSpectrogram
from jdl.cli.main import main
from jdl.data import (
    TFDS,
    AudioFeatures,
    AudioFolder,
    Chars,
    FixLength,
    Pad,
    Speech,
    WordLevel,
)
from jdl.data import audio_files as module
from jdl.data.prepare import prepare
from jdl.data.raw_audio import FOLDER
from jdl.data.tokenizers import read_tokenizer
from jdl.errors import UserError
from jdl.models import CNN
from tests.audio.librosa_values import sound
from tests.data.originals import write_tar

soundfile = pytest.importorskip("soundfile")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path):
    """Six sounds of two classes: tones, and noise; of two rates, one of them stereo."""
    draw = np.random.default_rng(0)
    for index in range(3):
        for name in ("noise", "tone"):
            x = draw.normal(size=600) * 0.1 if name == "noise" else sound(600 + index)
            rate = 16000 if index == 1 else 8000
            x = np.stack([x, x], 1) if index == 2 else x
            path = tmp_path / "sounds" / name / f"{index}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, x, rate)
    return tmp_path / "sounds"


def _table(folder, rows, header="file,text"):
    path = folder / "texts.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return str(path)


def _texts(folder, rows, **fields):
    fractions = {"test_fraction": 0.0, "validation_fraction": 0.0}
    table = _table(folder, rows)
    return AudioFolder(
        str(folder), labels_file=table, text_column="text", sample_rate=8000, **fractions, **fields
    )


def test_a_folder_of_classes_is_trained_on_and_predicted_from(folder, tmp_path, capsys):
    form = MelSpectrogram(n_mels=8, n_fft=64, hop_length=40)
    data = AudioFolder(
        str(folder),
        sample_rate=8000,
        transforms=(FixLength(400),),
        device_transforms=(AudioFeatures(spectrogram=form, channel_axis=True),),
        test_fraction=0.0,
        validation_fraction=0.0,
    )
    example = data.splits()["train"][1]
    assert example["audio"].shape == (300,)
    assert example["audio"].dtype == np.float32
    model = CNN(channels=(2,), dense=(), num_classes=2)
    experiment = jdl.Experiment(model=model, data=data, steps=1, batch_size=4)
    run = jdl.train(experiment, tmp_path / "run")
    fitted = run.experiment.data.fit()
    assert fitted["classes"] == ["noise", "tone"]
    assert (fitted["reads"], fitted["sample_rate"], fitted["channel"]) == ("audio", 8000, None)
    (folder / "tone" / "hum.txt").write_text("no sound")
    capsys.readouterr()
    assert main(["predict", str(tmp_path / "run"), str(folder), str(tmp_path / "no.wav")]) == 1
    out, complaints = capsys.readouterr()
    lines = out.splitlines()
    assert len(lines) == 6
    assert '"prediction":"' in lines[0].replace(" ", "")
    assert "no.wav cannot be read" in complaints


def test_faults_are_named_and_unreadable_files_left_out(folder, caplog):
    soundfile.write(folder / "tone" / "still.wav", np.zeros(100), 8000)
    soundfile.write(folder / "tone" / "loud.wav", np.clip(30 * sound(900), -1, 1), 8000)
    soundfile.write(folder / "tone" / "none.wav", np.zeros(0), 8000)
    data = AudioFolder(str(folder), sample_rate=8000)
    with caplog.at_level(logging.WARNING):
        assert len(data.load()["train"]) == 8
    text = caplog.text
    assert "left out" in text
    assert "none.wav holds no samples" in text
    assert "train 8 sounds (noise 3, tone 5)" in text
    assert "silent, and kept" in text
    assert "clipped, and kept" in text
    module.inspect.cache_clear()
    with pytest.raises(UserError, match="1 of 9 sounds cannot be read, more than"):
        AudioFolder(str(folder), max_unreadable=0).load()


def test_transcripts_become_tokens(folder):
    rows = ["noise/0.wav,aa", "tone/0.wav,a b"]
    data = Speech(
        _texts(folder, rows), encoding=Chars(), length=4, transforms=(Pad(700, names=("audio",)),)
    )
    train = data.splits()["train"]
    assert train[0]["tokens"].tolist() == [2, 2, 0, 0]
    assert train[1]["tokens"].tolist() == [2, 1, 3, 0]
    assert "text" not in train[0]
    assert data.decode(np.array([2, 1, 3, 0])) == "a b"
    grams = {tuple(row[:-1]): row[-1] for row in data.ngrams}
    assert grams[(0, 0, 2)] == 2
    assert grams[(1, 3, 0)] == 1
    known = data.with_fitted({**data.fit(), "tokenizer": data.tokenizer().to_json()})
    assert known.ngrams == data.ngrams
    changed = Speech(_texts(folder, ["noise/0.wav,ab", rows[1]]), length=4)
    assert data.fingerprint(train) != changed.fingerprint(changed.splits()["train"])


def test_words_as_tokens():
    tokenizer = WordLevel().build(["two one", "two two"])
    assert tokenizer.encode("one  two") == [0, 1]
    assert tokenizer.decode([1, 0]) == "two one"
    assert read_tokenizer(tokenizer.to_json()) == tokenizer
    with pytest.raises(UserError, match="contains 'six', which the training text"):
        tokenizer.encode("six two")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["noise/9.wav,a"], "row 1 names noise/9.wav, not in"),
        (["noise/0.wav,a", "noise/0.wav,b"], "row 2 names noise/0.wav again, after row 1"),
        (["noise/0.wav,"], "row 1 has no text"),
    ],
)
def test_wrong_tables(folder, rows, message):
    with pytest.raises(UserError, match=message):
        _texts(folder, rows).load()


def test_transcripts_that_do_not_fit(folder):
    long = Speech(_texts(folder, ["noise/0.wav,abcabc"]), length=5)
    with pytest.raises(UserError, match=r"transcript 0 of split 'train', of .*\.wav has 6 tokens"):
        long.splits()
    tokenizer = Chars().build(["ab"]).to_json()
    other = Speech(_texts(folder, ["noise/0.wav,añ"])).with_fitted({"tokenizer": tokenizer})
    with pytest.raises(
        UserError, match=r"transcript 0 of split 'train', of .*\.wav: the text contains 'ñ'"
    ):
        other.splits()


def test_rates_agree(folder):
    fields = {"test_fraction": 0.0, "validation_fraction": 0.0}
    data = AudioFolder(
        str(folder), sample_rate=16000, device_transforms=(AudioFeatures(),), **fields
    )
    with pytest.raises(UserError, match=r"is 16000, where .* of 8000 samples"):
        data.fit()
    with pytest.raises(UserError, match=r"data\.text_column is a column of data\.labels_file"):
        AudioFolder(str(folder), text_column="text")


def test_the_spoken_digits_are_read_from_their_archive(tmp_path):
    files, written = {}, {}
    for label, speaker, number in ((0, "george", 4), (7, "theo", 5), (7, "lucas", 12)):
        name, x = f"{label}_{speaker}_{number}.wav", np.arange(40 + label, dtype=np.int16)
        stream = io.BytesIO()
        soundfile.write(stream, x, 8000, "PCM_16", format="WAV")
        files[f"{FOLDER}/recordings/{name}"] = stream.getvalue()
        written[name] = (x, label)
    write_tar(tmp_path / "v1.0.9.tar.gz", files)
    prepare("spoken_digit", raw=tmp_path, data_dir=tmp_path / "data")
    (train,) = TFDS("spoken_digit", data_dir=str(tmp_path / "data")).load().values()
    examples = [train[index] for index in range(len(train))]
    found = {os.fsdecode(x["audio/filename"]): (x["audio"], x["label"]) for x in examples}
    assert found.keys() == written.keys()
    for name, (x, label) in written.items():
        np.testing.assert_array_equal(found[name][0], x)
        assert found[name][1] == label
    whole = jdl.load(ROOT / "experiments" / "spoken_digits.py").experiment.data
    inner = dataclasses.replace(whole.data, data_dir=str(tmp_path / "data"))
    official = dataclasses.replace(whole, data=inner).load()
    assert [int(x["label"]) for x in official["test"]] == [0]
    held = dataclasses.replace(whole, data=inner, speaker="theo").load()
    assert [int(x["speaker"]) for x in held["test"]] == [4]
    with pytest.raises(UserError, match="is one of george"):
        dataclasses.replace(whole, data=inner, speaker="anna").load()
    stereo = io.BytesIO()
    soundfile.write(stereo, np.zeros((9, 2)), 8000, "PCM_16", format="WAV")
    write_tar(tmp_path / "v1.0.9.tar.gz", {f"{FOLDER}/recordings/1_theo_0.wav": stereo.getvalue()})
    with pytest.raises(UserError, match=r"1_theo_0\.wav in .* has 2 channels of 16 bits"):
        prepare("spoken_digit", raw=tmp_path, data_dir=tmp_path / "other")
