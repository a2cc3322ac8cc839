"""Embeddings of files by the model of a run or a pretrained encoder, and search among them."""

import copy
import dataclasses
import functools
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jdl.data.documents import template
from jdl.data.files import TABULAR, read_texts
from jdl.data.tokenizers import Tokenizer, TokenizerFile, special_ids
from jdl.errors import UserError, first_line
from jdl.inference.predict import example_places
from jdl.models import BERT
from jdl.pretrained import load
from jdl.trainer.run import Run
from jdl.trainer.sampling import zeros
from jdl.typing import Json, PyTree

BATCH, MULTIPLE = 32, 32
"""Texts that are encoded at once, and what their padded length is a multiple of."""

Embed = Callable[[Path], tuple[list[dict[str, Json]], np.ndarray]]
"""Of a file: where each example is from, and the embeddings (examples, features) float32."""


@dataclass(frozen=True)
class TextEncoder:
    """A pretrained BERT that maps a text to the mean over its tokens (Reimers and Gurevych, 2019).

    Longer texts lose their end.
    """

    model: nn.Module  # tokens (batch, time) to vectors (batch, features)
    params: PyTree
    tokenizer: Tokenizer  # with a token that pads
    length: int  # tokens that it reads, special ones included

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Returns embeddings (texts, features) float32, not normalized."""
        before, after = template(self.tokenizer)
        room, pad = self.length - len(before) - len(after), special_ids(self.tokenizer)["pad"]
        rows = [[*before, *self.tokenizer.encode(text)[:room], *after] for text in texts]
        order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
        found: list[Any] = [None] * len(rows)
        for begin in range(0, len(rows), BATCH):
            chosen = order[begin : begin + BATCH]
            width = -(-len(rows[chosen[-1]]) // MULTIPLE) * MULTIPLE
            tokens = np.full((BATCH, min(width, self.length)), pad, np.int32)
            for place, row in enumerate(chosen):
                tokens[place, : len(rows[row])] = rows[row]
            for row, vector in zip(chosen, np.asarray(self._apply(tokens)), strict=False):
                found[row] = vector
        return np.stack(found).astype(np.float32)

    @functools.cached_property
    def _apply(self) -> Callable[[Any], jax.Array]:
        compiled = jax.jit(self.model.apply)
        return lambda tokens: compiled({"params": self.params}, jnp.asarray(tokens))


def load_encoder(directory: str | Path) -> TextEncoder:
    """Loads a BERT of transformers, or of sentence-transformers with mean pooling, as an encoder.

    Args:
      directory: contains config.json, model.safetensors and tokenizer.json.

    Raises:
      UserError: it lacks one of these, or pools in another way.
    """
    directory = Path(directory).expanduser()
    model, params = load(directory)
    if not isinstance(model, BERT):
        raise UserError(f"{directory} holds a {type(model).__name__}, where texts need a BERT")
    tokenizer = TokenizerFile(str(directory)).build(())
    if "pad" not in special_ids(tokenizer) or special_ids(tokenizer)["pad"] != model.pad_token_id:
        raise UserError(f"the tokenizer of {directory} pads with another token than its model")
    pooling = _json(directory / "1_Pooling" / "config.json")
    modes = [key for key, value in pooling.items() if key.startswith("pooling_mode") and value]
    if pooling and modes != ["pooling_mode_mean_tokens"]:
        raise UserError(
            f"{directory} pools by {', '.join(modes) or 'nothing'}, where encoders of jdl take the "
            f"mean over tokens (pooling_mode_mean_tokens)"
        )
    limit = _json(directory / "sentence_bert_config.json").get("max_seq_length")
    length = min(limit or model.max_position_embeddings, model.max_position_embeddings)
    encoder = model.clone(num_classes=0, pool="mean")
    heads = ("pooler", "logits", "transform", "transform_norm", "bias")
    kept = {name: value for name, value in params.items() if name not in heads}
    return TextEncoder(encoder, kept, tokenizer, length)


def encoder_embed(encoder: TextEncoder) -> Embed:
    """Returns what embeds files of texts: one text, or a table with a column `text`."""

    def embed(path: Path) -> tuple[list[dict[str, Json]], np.ndarray]:
        texts = read_texts(path, "text")
        if not texts:
            raise UserError(f"{path} has no texts")
        rows: list[dict[str, Json]] = [{"file": str(path)} for _ in texts]
        if path.suffix.lower() in TABULAR:
            rows = [{**row, "row": number} for number, row in enumerate(rows, start=1)]
        return rows, encoder(texts)

    return embed


def run_embed(run: Run, layer: str | None = None) -> Embed:
    """Returns what embeds the files that a run predicts from, by what a layer reads.

    Args:
      run: a trained run.
      layer: path of a module, whose first input is taken, in evaluation mode; None: `logits`, or
        the task's prediction where the model has no such layer.

    Raises:
      UserError: the model has no such layer.
    """
    experiment = run.experiment
    if layer is None and "logits" in run.compiled.abstract_state.params:
        layer = "logits"
    # One view of an example: of several, the features would be of the last.
    task = dataclasses.replace(run.program.task, views=()) if layer else run.program.task
    changed = copy.copy(run)
    changed.program = dataclasses.replace(run.program, task=task, layer=layer)
    batch = {**zeros(run, experiment.batch_size), "mask": np.ones(experiment.batch_size, bool)}
    changed.compiled = experiment.strategy.compile(changed.program, {}, batch)
    read = experiment.data.reader()

    def embed(path: Path) -> tuple[list[dict[str, Json]], np.ndarray]:
        arrays = read(path)
        found = changed.predict(arrays)
        if getattr(found, "ndim", 0) != 2:
            raise UserError(
                f"layer {layer!r} reads arrays of shape {np.shape(found)}, where an embedding is "
                f"(examples, features): name another layer of the model"
            )
        return example_places(run, path, len(found)), found.astype(np.float32)

    return embed


def embed_files(embed: Embed, paths: Sequence[Path]) -> tuple[list[dict[str, Json]], np.ndarray]:
    """Embeds all examples of several files.

    Returns:
      Where each is from, and the embeddings (examples, features) of length 1.

    Raises:
      UserError: a file cannot be read.
    """
    parts = [embed(path) for path in paths]
    rows = [row for found, _ in parts for row in found]
    return rows, normalized(np.concatenate([vectors for _, vectors in parts]))


def embed_text(embed: Embed, text: str) -> np.ndarray:
    """Embeds a text as the file that holds it: (features,) of length 1.

    Raises:
      UserError: the text is empty, or the model reads no texts.
    """
    if not text.strip():
        raise UserError("the query is empty: write a text to search for")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "query.txt"
        path.write_text(text, encoding="utf-8")
        try:
            return normalized(embed(path)[1])[0]
        except UserError as error:
            raise UserError(f"the query: {str(error).replace(str(path), 'it')}") from error


def normalized(vectors: np.ndarray) -> np.ndarray:
    """Returns vectors (rows, features) of length 1, so that products are cosine similarities."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def nearest_rows(query: np.ndarray, items: np.ndarray, count: int) -> Iterator[tuple[int, float]]:
    """Yields the items most similar to a query, with their cosine similarities.

    Args:
      query: (features,) of length 1.
      items: (items, features) of length 1.
      count: number of items at most.
    """
    similarity = items @ query
    for row in np.argsort(-similarity, kind="stable")[:count]:
        yield int(row), float(similarity[row])


def recall_at_k(queries: np.ndarray, items: np.ndarray, targets: np.ndarray, k: int = 1) -> float:
    """Computes the share of queries whose target is among the k most similar items.

    An item that is as similar as the target counts as nearer, so that equal vectors find nothing.

    Args:
      queries: (queries, features).
      items: (items, features).
      targets: (queries,) the item that each query should find.
      k: number of items that are looked at.

    Raises:
      UserError: `k` is below 1, or a target is no item.
    """
    if k < 1:
        raise UserError(f"recall_at_k needs k >= 1, not {k}")
    if np.min(targets) < 0 or np.max(targets) >= len(items):
        raise UserError(f"the targets must be items, 0 to {len(items) - 1}")
    queries, items, found = normalized(queries), normalized(items), []
    for begin in range(0, len(queries), 1000):
        similarity = queries[begin : begin + 1000] @ items.T
        own = np.asarray(targets)[begin : begin + 1000]
        hit = similarity[np.arange(len(own)), own]
        found.append((similarity >= hit[:, None]).sum(1) <= k)
    return float(np.concatenate(found).mean())


def write_embeddings(path: Path, rows: Sequence[Mapping[str, Json]], vectors: np.ndarray) -> None:
    """Writes `embedding` (examples, features), `files` and `rows` to an NPZ file, atomically.

    Raises:
      UserError: it cannot be written.
    """
    draft = path.with_name(f".{path.name}.tmp")
    try:
        with draft.open("wb") as file:
            names = np.array([str(row["file"]) for row in rows])
            numbers = np.array([row.get("row", row.get("frame", 0)) for row in rows], np.int64)
            np.savez(file, embedding=vectors, files=names, rows=numbers)
        draft.replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        draft.unlink(missing_ok=True)


def _json(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file; empty if there is no file."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not valid JSON: {first_line(error)}") from error
    return found if isinstance(found, dict) else {}
