"""Baselines of recommendation: popularity and item-based nearest neighbors."""

import numpy as np

from jdl.data import Interactions
from jdl.data.sources import Source, read_examples


def rank_metrics(
    scores: np.ndarray, item: np.ndarray, seen: np.ndarray, negatives: np.ndarray, k: int = 10
) -> dict[str, float]:
    """Returns the metrics of `jdl.tasks.NextItem`, computed directly.

    Args:
      scores: (users, items + 1), higher for what is recommended first; item 0 is padding.
      item: the chosen one, (users,).
      seen: bool, items that are not recommended, (users, items + 1).
      negatives: items among which the chosen one is ranked too, (users, negatives).
      k: length of the list.
    """
    found = {name: [] for name in ("hit_rate", "ndcg", "mrr", "sampled_hit_rate", "sampled_ndcg")}
    top = set()
    for row, own in enumerate(item):
        others = np.flatnonzero(~seen[row])
        others = others[(others > 0) & (others != own)]
        candidates = np.append(others, own)
        # A stable order with the chosen item last, so that equal scores count against it.
        order = candidates[np.argsort(-scores[row, candidates], kind="stable")]
        top.update(order[:k].tolist())
        for prefix, among in (("", others), ("sampled_", negatives[row])):
            rank = 1 + int((scores[row, among] >= scores[row, own]).sum())
            found[f"{prefix}hit_rate"].append(float(rank <= k))
            found[f"{prefix}ndcg"].append(1 / np.log2(1 + rank) if rank <= k else 0.0)
            if not prefix:
                found["mrr"].append(1 / rank)
    means = {name: float(np.mean(values)) for name, values in found.items()}
    return {**means, "catalog_coverage": len(top) / (scores.shape[1] - 1)}


def baselines(
    data: Interactions, split: str = "test", k: int = 10, neighbors: int = 20
) -> dict[str, dict[str, float]]:
    """Returns the metrics of popularity and of item-based nearest neighbors, on a split.

    Neighbors are items of the largest cosine of who chose them in training (Sarwar et al., 2001);
    an item's score is the sum of those to what the user chose before.
    """
    splits = data.splits()
    train, held = splits["train"], _stacked(splits[split])
    pairs = _stacked(train, ("user", "item"))
    chosen = np.zeros((int(pairs["user"].max()) + 1, held["seen"].shape[1]), np.float32)
    chosen[pairs["user"], pairs["item"]] = 1
    length = np.maximum(np.sqrt(chosen.sum(0)), 1)
    cosine = chosen.T @ chosen / length / length[:, None]
    np.fill_diagonal(cosine, 0)
    if neighbors < len(cosine):
        least = np.partition(cosine, -neighbors, axis=1)[:, -neighbors][:, None]
        cosine = np.where(cosine >= least, cosine, 0)
    rows = (held["item"], held["seen"], held["negatives"], k)
    popular = np.broadcast_to(chosen.sum(0), held["seen"].shape)
    return {
        "most popular": rank_metrics(popular, *rows),
        "item-based nearest neighbors": rank_metrics(held["seen"] @ cosine.T, *rows),
    }


def _stacked(
    source: Source, names: tuple[str, ...] = ("item", "seen", "negatives")
) -> dict[str, np.ndarray]:
    """Returns some arrays of all examples."""
    rows = read_examples(source, range(len(source)))
    return {name: np.stack([row[name] for row in rows]) for name in names}
