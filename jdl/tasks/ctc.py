"""Speech recognition by connectionist temporal classification (CTC)."""

import functools
import importlib.util
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jdl.data.base import Data
from jdl.data.speech import Speech
from jdl.decoding import Decoded, ctc_beam_search, ctc_greedy, ngram_log_probs
from jdl.errors import UserError, install_command
from jdl.metrics import Mean
from jdl.tasks.base import HostMetrics, Task
from jdl.typing import Batch, Json

ROWS = 64
"""Rows of a split that are decoded at a time."""


@dataclass(frozen=True, kw_only=True)
class CTC(Task):
    """Connectionist temporal classification of sequences (Graves et al., 2006).

    The model returns logits (batch, steps, vocab), of which label 0 is the blank, and their mask
    (batch, steps), False for padding at the end, as `jdl.models.SpeechEncoder` does. Targets are
    tokens (batch, length) int32 padded with 0, as of `jdl.data.Speech`.

    Metrics: `loss` in nats per token, which training minimizes; `unaligned`, the share of rows that
    have fewer steps than tokens, and blanks between equal ones, and do not count in the loss. For
    the splits in `scored` also the word and character error rates by jiwer, `wer` and `cer`, and
    where `beam_width` is above 1, `greedy_wer`.
    """

    inputs: tuple[str, ...] = ("audio", "audio_mask")  # names of the features and their mask
    targets: str = "tokens"  # name of the tokens
    beam_width: int = 1  # prefixes of the beam search; 1: greedy
    prior_weight: float = 0.0  # exponent of the data's n-gram prior in the beam search
    token_bonus: float = 0.0  # of the beam search, in nats for each token
    scored: tuple[str, ...] = ("validation", "test")  # splits to transcribe and score

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beam_width < 1:
            raise UserError(f"task.beam_width must be at least 1, not {self.beam_width}")
        if self.beam_width == 1 and (self.prior_weight or self.token_bonus):
            raise UserError(
                "task.prior_weight and task.token_bonus are of a beam search: raise "
                "task.beam_width above 1"
            )

    def loss_and_metrics(self, outputs: Any, batch: Batch) -> dict[str, Mean]:
        """Computes `loss` and `unaligned`."""
        logits, kept = outputs
        tokens = batch[self.targets]
        counts = (tokens > 0).sum(1)
        repeats = ((tokens[:, 1:] == tokens[:, :-1]) & (tokens[:, 1:] > 0)).sum(1)
        fits = counts + repeats <= kept.sum(1)
        losses = optax.ctc_loss(logits, 1.0 - kept, tokens, (tokens == 0).astype(jnp.float32))
        rows = batch["mask"] & fits
        total = jnp.where(rows, losses, 0).sum()
        return {
            "loss": Mean(total, jnp.where(rows, jnp.maximum(counts, 1), 0).sum(dtype=jnp.float32)),
            "unaligned": Mean.of((~fits).astype(jnp.float32), batch["mask"]),
        }

    def to_prediction(self, outputs: Any, batch: Batch) -> dict[str, jax.Array]:
        """Returns `tokens` and `frames` as of `jdl.decoding`, `log_probs`, and their `mask`.

        Without the prior, which is of the data: see `decode`.
        """
        del batch
        logits, kept = outputs
        log_probs = jax.nn.log_softmax(logits)
        decoded = self.decode(log_probs, kept)
        return {**decoded._asdict(), "log_probs": log_probs, "mask": kept}

    def decode(self, log_probs: jax.Array, mask: jax.Array, prior: Any = None) -> Decoded:
        """Returns the tokens of log-probabilities (batch, steps, vocab).

        Args:
          log_probs: of the labels.
          mask: (batch, steps) bool.
          prior: of `jdl.decoding.ngram_log_probs`; None: there is none.
        """
        if self.beam_width == 1:
            return ctc_greedy(log_probs, mask)
        return ctc_beam_search(
            log_probs,
            mask,
            beam_width=self.beam_width,
            prior=prior,
            prior_weight=self.prior_weight,
            token_bonus=self.token_bonus,
        )

    def has_host_metrics(self, split: str, data: Data) -> bool:
        """Whether the split is in `scored` and the data is `Speech`.

        Raises:
          UserError: `jiwer` is not installed.
        """
        if split not in self.scored or not isinstance(data, Speech):
            return False
        if importlib.util.find_spec("jiwer") is None:
            raise UserError(
                f"word error rates need the package jiwer: {install_command('audio')}, or set "
                f"task.scored to ()"
            )
        return True

    def compute_metrics(
        self, prediction: Any, batch: Mapping[str, np.ndarray], data: Data
    ) -> HostMetrics:
        """Computes `wer` and `cer`; the lines are the transcripts."""
        assert isinstance(data, Speech)
        expected = [data.decode(row) for row in batch[self.targets]]
        lines = [data.decode(row) for row in self.decode_rows(prediction, data).tokens]
        scores = error_rates(expected, lines)
        if self.beam_width > 1:
            log_probs, mask = (jnp.asarray(prediction[name]) for name in ("log_probs", "mask"))
            greedy = ctc_greedy(log_probs, mask).tokens
            greedy_lines = [data.decode(row) for row in np.asarray(greedy)]
            scores["greedy_wer"] = error_rates(expected, greedy_lines)["wer"]
        return HostMetrics(scores, {}, lines)

    def decode_rows(self, prediction: Mapping[str, np.ndarray], data: Speech) -> Decoded:
        """Returns the tokens of predictions as NumPy arrays, with the prior of the data."""
        if not self.prior_weight:
            return Decoded(prediction["tokens"], prediction["frames"])
        log_probs, mask = prediction["log_probs"], prediction["mask"]
        prior = ngram_log_probs(data.ngrams, log_probs.shape[-1])
        parts = [
            jax.device_get(
                _decode(self, log_probs[begin : begin + ROWS], mask[begin : begin + ROWS], prior)
            )
            for begin in range(0, len(mask), ROWS)
        ]
        return Decoded(*(np.concatenate(each) for each in zip(*parts, strict=True)))

    def format_prediction(self, prediction: Any, names: Sequence[str]) -> dict[str, Json]:
        """Returns the tokens' numbers; `jdl transcribe` returns text."""
        del names
        tokens = prediction["tokens"]
        return {"prediction": tokens[tokens > 0].tolist()}

    def validate_batch(self, batch: Mapping[str, np.ndarray], outputs: Any, where: str) -> None:
        """Also requires tokens that the model has labels for, padded at the end."""
        super().validate_batch(batch, outputs, where)
        tokens, labels = np.asarray(batch[self.targets]), outputs["log_probs"].shape[-1]
        if tokens.ndim != 2 or not np.issubdtype(tokens.dtype, np.integer):
            raise UserError(
                f"{where}: {self.targets!r} has shape {tokens.shape} and dtype {tokens.dtype}, "
                f"where CTC needs integers (batch, length)"
            )
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < labels:
            raise UserError(
                f"{where}: {self.targets!r} holds {tokens.max()}, where the model has the labels 0 "
                f"to {labels - 1}: set model.num_classes to {tokens.max() + 1} or more"
            )
        if gaps := np.flatnonzero((np.diff((tokens > 0).astype(int), axis=1) > 0).any(1)).tolist():
            raise UserError(
                f"{where}: {self.targets!r} has a 0 before other tokens at row {gaps[0]}: number "
                f"them from 1, since 0 is the blank"
            )


@functools.partial(jax.jit, static_argnums=0)
def _decode(task: CTC, log_probs: Any, mask: Any, prior: Any) -> Decoded:
    return task.decode(log_probs, mask, prior)


def error_rates(expected: Sequence[str], found: Sequence[str]) -> dict[str, float]:
    """Returns the word and character error rates of transcripts, `wer` and `cer`, by jiwer.

    They are edits in all texts, divided by their words, or characters.
    """
    import jiwer

    words = jiwer.process_words(list(expected), list(found))
    characters = jiwer.process_characters(list(expected), list(found))
    return {"wer": float(words.wer), "cer": float(characters.cer)}


def word_boundaries(wave: np.ndarray, places: Sequence[float], step: int) -> list[int]:
    """Returns where words begin and the last one ends: sample places, one more than words.

    CTC tells that a word was said, but not when it began. Between two words it is the quietest
    step; before the first and behind the last, where the sound reaches a hundredth of its power.

    Args:
      wave: (samples,), without padding.
      places: samples at which the words were recognized, ascending.
      step: samples of a step.
    """
    size = max(step // 4, 1)
    count = max(len(wave) // size, 1)
    blocks = np.zeros(count * size)
    blocks[: min(len(wave), count * size)] = wave[: count * size]
    power = np.square(blocks).reshape(count, size).mean(1)
    # A closure within a word, as in "six", is quiet for less than three blocks.
    smooth = np.convolve(power, np.ones(5) / 5, "same")
    loud = np.flatnonzero(power > 0.01 * power.max(initial=0))
    first, last = (int(loud[0]), int(loud[-1]) + 1) if len(loud) else (0, count)
    at = [min(max(int(place) // size, 0), count - 1) for place in places]
    found = [min(first, at[0])] if at else []
    for left, right in itertools.pairwise(at):
        between = smooth[left : right + 1]
        found.append(left + int(np.mean(np.flatnonzero(between == between.min()))))
    return [each * size for each in [*found, max(last, at[-1] + 1)]] if at else []
