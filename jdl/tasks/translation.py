"""Translation: predicting a target sequence from a source sequence."""

import functools
import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jdl.data.base import Data
from jdl.data.tokenizers import BOS, EOS, MASK, PAD, Tokenizer
from jdl.decoding import translate
from jdl.errors import UserError, install_command
from jdl.metrics import Mean, Perplexity
from jdl.state import TrainState
from jdl.tasks.base import HostMetrics, Task
from jdl.tasks.forward import forward, initialize
from jdl.typing import Batch, Key, PyTree


@dataclass(frozen=True, kw_only=True)
class Translation(Task):
    """Cross-entropy of each token of a target, given the source and the tokens before it.

    A batch holds sources (batch, keys) and targets (batch, length + 1), int32, right-padded with 0,
    as in `jdl.data.Pairs`: the model reads all of a target but the last token and predicts all but
    the first. Its `__call__(source, tokens, targets, weights, smoothing, train)` returns the
    weighted sum of cross-entropies, without `targets` logits (batch, length, vocab). Prediction
    calls its methods `encode` and `decode`, as `jdl.models.EncoderDecoder` has them.

    Metrics over tokens without padding: `loss` in nats, which training minimizes, with
    `label_smoothing`; and in evaluation `nll` in nats, its value without smoothing, `perplexity`,
    and `accuracy` as a fraction. For the splits in `bleu`, if the data has a tokenizer, also
    SacreBLEU from 0 to 100 (Post, 2018).
    """

    inputs: str = "source"  # name of the sources in a batch
    targets: str = "target"  # name of the translations
    label_smoothing: float = 0.1  # probability spread over all tokens (Szegedy, 2016)
    max_extra_tokens: int = 50  # maximum tokens beyond the source's length
    num_beams: int = 1  # beams of the search; 1: greedy
    alpha: float = 0.6  # exponent of beam search's length penalty (Wu et al., 2016)
    bleu: tuple[str, ...] = ("test",)  # splits to translate and score by BLEU

    any_length: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"label_smoothing is a share in [0, 1), not {self.label_smoothing}")
        for name, least in (("max_extra_tokens", 0), ("num_beams", 1), ("alpha", 0)):
            if not least <= getattr(self, name) < math.inf:
                raise UserError(f"task.{name} must be at least {least}, not {getattr(self, name)}")

    def init(self, model: nn.Module, key: Key, batch: Batch) -> dict[str, PyTree]:
        """See `Task.init`."""
        return initialize(model, key, batch[self.inputs], batch[self.targets][:, :-1])

    def batch_metrics(
        self,
        model: nn.Module,
        params: PyTree,
        state: TrainState,
        batch: Batch,
        *,
        train: bool,
        key: Key | None = None,
    ) -> tuple[dict[str, Mean], dict[str, PyTree]]:
        """See `Task.batch_metrics`; the weight is the number of tokens."""
        source, tokens = batch[self.inputs], batch[self.targets][:, :-1]
        targets = batch[self.targets][:, 1:]
        weights = ((targets != PAD) & batch["mask"][:, None]).astype(jnp.float32)
        call = functools.partial(forward, model, params, state.collections, source, tokens)
        if train:
            total, collections = call(
                targets, weights, smoothing=self.label_smoothing, train=True, key=key
            )
            return {"loss": Mean(total, weights.sum())}, collections
        logits, collections = call(train=False)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        nll = Mean.of(losses, weights)
        # Label smoothing adds smoothing * (target logit - mean logit) to the cross-entropy (Szegedy
        # et al., 2016, section 7).
        own = jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
        losses += self.label_smoothing * (own - logits.mean(-1))
        right = (logits.argmax(-1) == targets).astype(jnp.float32)
        return {
            "loss": Mean.of(losses, weights),
            "nll": nll,
            "perplexity": Perplexity(nll.total, nll.count),
            "accuracy": Mean.of(right, weights),
        }, collections

    def predict(self, model: nn.Module, state: TrainState, batch: Batch) -> jax.Array:
        """Returns translations (batch, longest) int32, padded with `<eos>`."""
        source = batch[self.inputs]
        longest = source.shape[1] + self.max_extra_tokens
        longest = min(longest, getattr(model, "max_position_embeddings", longest))
        variables = {"params": state.params, **state.collections}
        found = translate(
            model, variables, source, longest, bos_token_id=BOS, eos_token_id=EOS,
            suppress_tokens=(PAD, BOS, MASK), num_beams=self.num_beams, alpha=self.alpha,
        )  # fmt: skip
        # The limit ignores source padding, which must not lengthen a translation.
        limits = (source != PAD).sum(1, keepdims=True) + self.max_extra_tokens
        return jnp.where(jnp.arange(longest) < limits, found, EOS)

    def has_host_metrics(self, split: str, data: Data) -> bool:
        """Whether the split is in `bleu` and the data has a tokenizer.

        Raises:
          UserError: `sacrebleu` is not installed.
        """
        if split not in self.bleu or not data.has_tokenizer:
            return False
        if importlib.util.find_spec("sacrebleu") is None:
            raise UserError(
                f"scoring by BLEU needs the package sacrebleu: {install_command('text')}, or set "
                f"task.bleu to ()"
            )
        return True

    def compute_metrics(
        self, prediction: Any, batch: Mapping[str, np.ndarray], data: Data
    ) -> HostMetrics:
        """Computes `bleu`, with SacreBLEU's signature; the lines are the translations."""
        tokenizer = data.tokenizer()
        lines = texts(prediction, tokenizer)
        bleu, signature = corpus_bleu(lines, texts(batch[self.targets], tokenizer))
        return HostMetrics({"bleu": bleu}, {"bleu": signature}, lines)

    def validate_batch(self, batch: Mapping[str, np.ndarray], outputs: Any, where: str) -> None:
        """Also requires sources and targets to be token sequences that are not empty."""
        super().validate_batch(batch, outputs, where)
        for name in (self.inputs, self.targets):
            tokens = np.asarray(batch[name])
            if tokens.ndim != 2 or not np.issubdtype(tokens.dtype, np.integer):
                raise UserError(
                    f"{where}: {name!r} has shape {tokens.shape} and dtype {tokens.dtype}, where "
                    f"translation needs sequences of integers"
                )
            empty = np.flatnonzero((tokens == PAD).all(1))
            if empty.size:
                raise UserError(f"{where}: {name!r} has no tokens at row {empty[0]}")


def texts(tokens: np.ndarray, tokenizer: Tokenizer) -> list[str]:
    """Decodes each row of tokens (rows, length), without special tokens."""
    return [tokenizer.decode(row) for row in np.asarray(tokens).tolist()]


def corpus_bleu(found: Sequence[str], expected: Sequence[str]) -> tuple[float, str]:
    """Computes BLEU from 0 to 100 (Papineni et al., 2002) and its signature by SacreBLEU.

    Uses SacreBLEU's defaults: cased, detokenized texts, split into words by `13a`.

    Args:
      found: translations, as text.
      expected: as many references.
    """
    from sacrebleu.metrics.bleu import BLEU

    metric = BLEU(tokenize="13a")
    score = metric.corpus_score(found, [expected])
    return score.score, str(metric.get_signature())
