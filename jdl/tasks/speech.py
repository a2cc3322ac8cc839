"""Speech synthesis: generation of log-mel spectra, which Griffin-Lim turns into sounds."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jdl.audio import MelSpectrogram
from jdl.data.base import Data
from jdl.media import Sounds
from jdl.state import TrainState
from jdl.tasks.base import HostMetrics
from jdl.tasks.diffusion import Diffusion
from jdl.typing import Batch


@dataclass(frozen=True, kw_only=True)
class SpeechSynthesis(Diffusion):
    """`Diffusion` of log-mel spectra (batch, frames, bands, 1), whose samples are sounds.

    A class is a word of a speaker, and its name `WORD SPEAKER`, as in `7 theo`: `jdl speak` says
    several. Shorter words end in frames of silence, in which a model learns how long they are.

    With `scores`, whose network classifies such spectra, evaluation compares what is heard: the
    spectra of the sounds, after Griffin-Lim. Further metrics are shares of utterances whose word or
    speaker the network recognizes, by the sum of its probabilities over speakers or words:

    - `recognizer_accuracy` and `speaker_accuracy` of the samples.
    - `real_recognizer_accuracy` and `real_speaker_accuracy` of the recordings.
    - `griffin_lim_accuracy`, of words, where the spectra of the recordings are inverted: what the
      inversion alone costs.
    """

    mel: MelSpectrogram = MelSpectrogram()  # that the data were made with
    num_iters: int = 32  # iterations of Griffin-Lim

    def waves(self, spectra: jax.Array) -> jax.Array:
        """Inverts spectra (batch, frames, bands, 1); returns sounds (batch, samples) float32."""
        return self.mel.waves(spectra[..., 0], num_iters=self.num_iters)

    def heard(self, spectra: jax.Array) -> jax.Array:
        """Returns the spectra of the sounds of spectra, of the same shape."""
        found = self.mel.log_mel(self.waves(spectra))
        missing = spectra.shape[1] - found.shape[1]
        found = jnp.pad(
            found[:, : spectra.shape[1]],
            ((0, 0), (0, max(missing, 0)), (0, 0)),
            constant_values=np.log(self.mel.floor),
        )
        return found.clip(*self.value_range)[..., None]

    def host_outputs(self, model: nn.Module, state: TrainState, batch: Batch) -> Any:
        """See `Task.host_outputs`: what `scores` reads, of the sounds."""
        assert self.scores is not None
        spectra = batch[self.input_names[0]]
        samples = self.heard(self.sample(model, state, batch))
        found = self.scores.outputs(state, samples, spectra)
        inverted = self.scores.features(state, self.heard(spectra))[1]
        return {**found, "inverted": jax.nn.softmax(inverted)}

    def compute_metrics(
        self, prediction: Any, batch: Mapping[str, np.ndarray], data: Data
    ) -> HostMetrics:
        """See `Task.compute_metrics`: the scores of sounds."""
        scores = super().compute_metrics(prediction, batch, data)
        names, labels = data.output_names(), batch[self.labels]
        words, speakers = (np.array(part) for part in zip(*map(split_name, names), strict=True))
        found = {}
        for prefix, kind, part in (
            ("recognizer", "sample", words),
            ("speaker", "sample", speakers),
            ("real_recognizer", "image", words),
            ("real_speaker", "image", speakers),
            ("griffin_lim", "inverted", words),
        ):
            chances = prediction[kind]
            chances = chances["probabilities"] if kind != "inverted" else chances
            found[f"{prefix}_accuracy"] = accuracy(chances, labels, part)
        return dataclasses.replace(scores, metrics={**scores.metrics, **found})

    def higher_is_better(self, metric: str) -> bool | None:
        """See `Task.higher_is_better`."""
        return True if metric.endswith("_accuracy") else super().higher_is_better(metric)

    def render(self, samples: Any, batch: Mapping[str, np.ndarray], data: Data) -> Sounds:
        """Returns the sounds of spectra."""
        del batch, data
        # In parts, whose Fourier transforms fit into memory.
        invert = jax.jit(self.waves)
        parts = [invert(jnp.asarray(samples[i : i + 64])) for i in range(0, len(samples), 64)]
        waves = np.concatenate([np.asarray(part) for part in parts])
        peaks = np.abs(waves).max(1, keepdims=True)
        return Sounds(waves / np.maximum(peaks, 1), self.mel.sample_rate)


def split_name(name: str) -> tuple[str, str]:
    """Returns word and speaker of the name of a class, `WORD SPEAKER`."""
    word, _, speaker = name.rpartition(" ")
    return word, speaker


def accuracy(chances: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> float:
    """Returns the share of rows whose most probable group of classes is that of their label.

    Args:
      chances: probabilities (rows, classes).
      labels: classes (rows,).
      groups: of each class, the name of its group.
    """
    names, number = np.unique(groups, return_inverse=True)
    sums = chances @ np.eye(len(names))[number]
    return float((sums.argmax(1) == number[labels]).mean())
