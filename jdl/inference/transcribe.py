"""Transcribes sounds with a trained run: whole files with time stamps, or a stream of samples."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jdl.data import AudioFeatures, Data, FixLength, Pad, Speech
from jdl.data.examples import apply_transforms
from jdl.data.tokenizers import WordTokenizer
from jdl.errors import UserError
from jdl.experiment import Experiment
from jdl.step import transform
from jdl.tasks import CTC
from jdl.tasks.ctc import word_boundaries
from jdl.trainer.run import Run
from jdl.typing import Json


def check_speech_run(workdir: Path, experiment: Experiment) -> None:
    """Checks that a run transcribes sounds.

    Raises:
      UserError: it has another task or other data, or no features.
    """
    task, data = experiment.task, experiment.data
    if not (isinstance(task, CTC) and isinstance(data, Speech)):
        raise UserError(
            f"{workdir} holds a run of {type(task).__name__} on {type(data).__name__}: only CTC on "
            f"Speech transcribes sounds"
        )
    _features(data)


def transcribe(
    run: Run, paths: Iterable[Path], on_error: Callable[[UserError], Any]
) -> Iterator[dict[str, Json]]:
    """Transcribes sound files of any length.

    Host transforms that bring sounds to one length are left out.

    Args:
      run: a run of `CTC` on `Speech`.
      paths: the files.
      on_error: called for each file that cannot be read; it is skipped.

    Yields:
      Of each file `file`, `text`, and `words`: `word`, with `start` and `end` in seconds.
    """
    data: Any = run.experiment.data
    kept = tuple(t for t in data.transforms if not isinstance(t, (FixLength, Pad)))
    host, read = dataclasses.replace(data, transforms=kept), data.reader()
    spectrogram = _features(run.experiment.data).spectrogram
    task: Any = run.experiment.task
    program = run.program
    state = run.evaluation_state(run.gather_state())

    @jax.jit
    def predict(state: Any, batch: Any) -> Any:
        return task.predict(program.model, state, transform(program, batch, None))

    for path in paths:
        try:
            examples = read(path)
        except UserError as error:
            on_error(error)
            continue
        wave = apply_transforms(host, {name: x[0] for name, x in examples.items()})["audio"]
        # Whole seconds, so that few lengths are compiled.
        size = -(-len(wave) // spectrogram.sample_rate) * spectrogram.sample_rate
        batch = {
            "audio": np.pad(wave, (0, size - len(wave)))[None],
            "audio_mask": np.arange(size)[None] < len(wave),
            "mask": np.ones(1, bool),
        }
        found = jax.device_get(predict(state, batch))
        decoded = task.decode_rows(found, data)
        step = spectrogram.hop_length * -(-spectrogram.frames(size) // found["mask"].shape[1])
        tokens = decoded.tokens[0][decoded.tokens[0] > 0]
        places = spectrogram.seconds(0) * spectrogram.sample_rate + step * (
            decoded.frames[0][: len(tokens)] + 0.5
        )
        words = timed_words(data, tokens, places, wave, step)
        yield {"file": str(path), "text": data.decode(tokens), "words": words}


def timed_words(
    data: Speech, tokens: np.ndarray, places: np.ndarray, wave: np.ndarray, step: int
) -> list[dict[str, Json]]:
    """Returns words with `start` and `end` in seconds.

    Args:
      data: with the tokenizer.
      tokens: (tokens,) numbers, without 0.
      places: (tokens,) samples at which each was emitted.
      wave: (samples,) the sound.
      step: samples between emissions.
    """
    words: list[str] = []
    spans: list[list[float]] = []
    begins = True
    for token, place in zip(tokens, places.tolist(), strict=True):
        piece = data.decode(np.array([token]))
        begins = begins or piece[:1].isspace() or isinstance(data.tokenizer(), WordTokenizer)
        if piece.strip():
            if begins:
                words.append("")
                spans.append([place, place])
            words[-1] += piece.strip()
            spans[-1][1] = place
        begins = piece[-1:].isspace() or (begins and not piece.strip())
    rate = _features(data).spectrogram.sample_rate
    edges = word_boundaries(wave, [int(sum(span) / 2) for span in spans], step)
    return [
        {"word": word, "start": round(start / rate, 3), "end": round(end / rate, 3)}
        for word, start, end in zip(words, edges[:-1], edges[1:], strict=True)
    ]


class StreamingTranscriber:
    """Transcribes a sound while it is heard, with a causal encoder; greedily.

    The tokens are those of the whole sound, as soon as the encoder has seen enough.

    Args:
      run: a run of `CTC` on `Speech` with a causal `SpeechEncoder`, whose features have
        `padding="causal"` and are not normalized.

    Raises:
      UserError: the encoder or the features need what follows.
    """

    def __init__(self, run: Run) -> None:
        """Starts before the first sample."""
        features, model = _features(run.experiment.data), run.program.model
        spectrogram = features.spectrogram
        if not getattr(model, "causal", False):
            raise UserError("a stream needs a causal encoder: train with model.causal=True")
        if spectrogram.padding != "causal" or features.normalize or features.kind != "log_mel":
            raise UserError(
                "a stream needs features of what was heard: train with AudioFeatures of "
                "spectrogram.padding='causal', normalize=False and kind='log_mel'"
            )
        self._run, self._model = run, model
        state = run.evaluation_state(run.gather_state())
        self._block = spectrogram.hop_length * model.stride
        self._overlap = spectrogram.n_fft - spectrogram.hop_length
        alone = dataclasses.replace(spectrogram, padding="none")
        later = dataclasses.replace(features, spectrogram=alone)
        transforms = tuple(later if t is features else t for t in run.program.transforms)
        program = dataclasses.replace(run.program, transforms=transforms)

        @jax.jit
        def step(cache: Any, samples: Any, count: Any) -> tuple[Any, Any]:
            """Returns log-probabilities of blocks, of which `count` frames are of the sound."""
            batch = {"audio": samples[None], "mask": jnp.ones(1, bool)}
            frames = transform(program, batch, None)["audio"]
            mask = jnp.arange(frames.shape[1])[None] < count
            variables = {"params": state.params, **state.collections, "cache": cache}
            (logits, _), new = model.apply(variables, frames, mask, stream=True, mutable=["cache"])
            return jax.nn.log_softmax(logits[0]), new["cache"]

        self._step = step
        self._cache: Any = {}
        self._samples = np.zeros(self._overlap, np.float32)
        self._skip, self._last, self._count = model.lookahead, 0, 0

    def feed(self, samples: np.ndarray) -> list[int]:
        """Returns the tokens that some further samples (samples,) float32 complete."""
        return self._tokens(self.log_probs(samples))

    def finish(self) -> list[int]:
        """Returns the remaining tokens, once there are no further samples."""
        return self._tokens(self.flush())

    def log_probs(self, samples: np.ndarray) -> np.ndarray:
        """Returns the log-probabilities (steps, vocab) that further samples complete."""
        self._samples = np.concatenate([self._samples, np.asarray(samples, np.float32)])
        blocks = (len(self._samples) - self._overlap) // self._block
        return self._advance(blocks, blocks * self._model.stride)

    def flush(self) -> np.ndarray:
        """Returns the log-probabilities of the last steps, which lacked what followed."""
        left = len(self._samples) - self._overlap
        spectrogram = _features(self._run.experiment.data).spectrogram
        frames = left // spectrogram.hop_length
        blocks = -(-frames // self._model.stride) + self._model.lookahead
        self._samples = np.pad(self._samples, (0, (blocks + 1) * self._block - left))
        return self._advance(blocks, frames)

    def _advance(self, blocks: int, frames: int) -> np.ndarray:
        """Applies the encoder to blocks of samples, of which some frames are of the sound."""
        if not blocks:
            return np.zeros((0, self._model.num_classes), np.float32)
        size = self._overlap + blocks * self._block
        found, self._cache = self._step(self._cache, self._samples[:size], frames)
        self._samples = self._samples[blocks * self._block :]
        skipped = min(self._skip, blocks)
        self._skip -= skipped
        return np.asarray(found)[skipped:]

    def _tokens(self, log_probs: np.ndarray) -> list[int]:
        """Returns the tokens of further steps, without repetitions of the last."""
        found = []
        for label in log_probs.argmax(-1).tolist():
            if label not in (0, self._last):
                found.append(label)
            self._last = label
        return found


def _features(data: Data) -> AudioFeatures:
    """Returns the transform that makes features of sounds.

    Raises:
      UserError: there is none.
    """
    for each in data.device_transforms:
        if isinstance(each, AudioFeatures):
            return each
    raise UserError("the run has no AudioFeatures among data.device_transforms")
