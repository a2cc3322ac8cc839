"""Strings of three to five spoken digits, transcribed by CTC (Graves et al., 2006).

    jdl prepare spoken_digit
    jdl train spoken_strings_ctc
    jdl train spoken_strings_ctc --data.speech.digits.speaker theo
    jdl transcribe RUN a.wav

A string is of recordings of one speaker, with up to 0.1 s of silence between them. Splits are those
of `spoken_digits`, so that no recording of a test string was trained on; with a speaker, neither
was that voice. `join_error` is the median distance between the ends of words that are found and the
joins, in seconds.

`join_error` is 0.013 s. Strings of a speaker that training has not heard have a `wer` of 0.094
(theo) and 0.376 (george). Of the test strings 20 dB softer it is 0.035, with noise at 20, 10 and 5
dB 0.004, 0.017 and 0.044 (seed 0, `python -m benchmarks.noise`).

Expect: test wer 0.0043 (3 seeds, max 0.0068), 383 s, 1 busy core of an Intel Xeon
"""

import hashlib
from dataclasses import dataclass, replace

import numpy as np
from spoken_digits import SpokenDigits

from jdl import Experiment, Runtime
from jdl.data import (
    AddNoise,
    AudioFeatures,
    Buckets,
    Data,
    Pad,
    RandomGain,
    Source,
    SpecAugment,
    Speech,
    WordLevel,
)
from jdl.data.readers import audio_reader
from jdl.data.sources import read_examples
from jdl.models import SpeechEncoder
from jdl.optimizers import AdamW, Cosine
from jdl.tasks import CTC
from jdl.tasks.ctc import word_boundaries

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LONGEST = 28_000  # samples of a string


@dataclass(frozen=True)
class Strings:
    """Strings of recordings, made on access."""

    recordings: tuple[np.ndarray, ...]  # int16
    labels: tuple[int, ...]  # of the recordings
    rows: tuple[tuple[int, ...], ...]  # recordings of each string
    gaps: tuple[tuple[int, ...], ...]  # samples of silence before each recording and at the end

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int):
        parts, joins, place = [], [], 0
        for number, gap in zip(self.rows[index], self.gaps[index], strict=False):
            joins.append(place + gap // 2)
            parts += [np.zeros(gap, np.int16), self.recordings[number]]
            place += gap + len(self.recordings[number])
        joins = np.array(joins[1:] + [-1] * (5 - len(joins)), np.int32)
        parts.append(np.zeros(self.gaps[index][-1], np.int16))
        return {"audio": np.concatenate(parts), "joins": joins, "text": self.text(index)}

    def text(self, index: int) -> str:
        return " ".join(WORDS[self.labels[number]] for number in self.rows[index])

    def array(self, name: str):
        return np.array([self.text(i) for i in range(len(self))]) if name == "text" else None

    def digest(self) -> str:
        found = hashlib.sha256(repr((self.labels, self.rows, self.gaps)).encode())
        for recording in self.recordings:
            found.update(recording.tobytes())
        return found.hexdigest()


@dataclass(frozen=True, kw_only=True)
class DigitStrings(Data):
    """Strings of recordings of one speaker: `audio` int16, `text`, and `joins` in samples."""

    digits: SpokenDigits = SpokenDigits()  # the recordings
    num_examples: int = 4000  # of train; a tenth as many of the other splits
    max_gap: int = 800  # samples of silence between recordings

    def splits(self) -> dict[str, Source]:
        """Returns strings of the recordings of each split."""
        counts = {"train": self.num_examples}
        return {
            name: self.strings(source, counts.get(name, self.num_examples // 10))
            for name, source in self.digits.splits().items()
        }

    def reader(self):
        """Reads a sound of 8 kHz."""
        return audio_reader(8000, "int16")

    def strings(self, source: Source, count: int) -> Strings:
        """Returns random strings of the recordings of up to a second."""
        found = read_examples(source, range(len(source)))
        recordings = [np.asarray(x["audio"], np.int16) for x in found]
        short = np.array([len(x) <= 8000 for x in recordings])
        speakers = np.array([int(x["speaker"]) for x in found])
        draw = np.random.default_rng(self.split_seed)
        rows, gaps = [], []
        while len(rows) < count:
            own = np.flatnonzero(short & (speakers == draw.choice(np.unique(speakers))))
            chosen = draw.choice(own, draw.integers(3, 6)).tolist()
            silence = draw.integers(0, self.max_gap + 1, len(chosen) + 1).tolist()
            if sum(len(recordings[i]) for i in chosen) + sum(silence) <= LONGEST:
                rows.append(tuple(chosen))
                gaps.append(tuple(silence))
        labels = tuple(int(x["label"]) for x in found)
        return Strings(tuple(recordings), labels, tuple(rows), tuple(gaps))


@dataclass(frozen=True, kw_only=True)
class StringsCTC(CTC):
    """CTC that also compares the ends of words with the joins."""

    def compute_metrics(self, prediction, batch, data):
        found = super().compute_metrics(prediction, batch, data)
        step = 320  # samples of a step: hop_length * stride
        errors = []
        decoded = self.decode_rows(prediction, data)
        for row, (tokens, frames) in enumerate(zip(decoded.tokens, decoded.frames, strict=True)):
            joins = batch["joins"][row]
            joins = joins[joins >= 0]
            if (tokens > 0).sum() == len(joins) + 1:
                places = ((frames[tokens > 0] + 0.5) * step).tolist()
                wave = batch["audio"][row][batch["audio_mask"][row]] / 32768
                errors += np.abs(word_boundaries(wave, places, step)[1:-1] - joins).tolist()
        error = float(np.median(errors)) / 8000 if errors else float("nan")
        return replace(found, metrics={**found.metrics, "join_error": error})


data = Speech(
    DigitStrings(),
    encoding=WordLevel(),
    length=5,
    transforms=(Pad(LONGEST, names=("audio",)),),
    device_transforms=(
        RandomGain(min_db=-12, max_db=12),
        AddNoise(min_snr_db=5, max_snr_db=30, rate=0.5),
        AudioFeatures(),
        SpecAugment(freq_mask_size=6, time_mask_size=10),
    ),
    buckets=Buckets((14_000, 19_000), names=("audio", "audio_mask"), by="audio_mask"),
)

experiment = Experiment(
    model=SpeechEncoder(dropout_rate=0.1),
    task=StringsCTC(beam_width=8, prior_weight=0.2),
    data=data,
    optimizer=AdamW(2e-3, schedule=Cosine(warmup=0.1), weight_decay=1e-2),
    epochs=14,
    batch_size=64,
    runtime=Runtime(malloc_arenas=0),
)
