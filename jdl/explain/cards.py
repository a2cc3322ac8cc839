"""The card of an explanation: what was checked of it, and where it fails."""

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jdl.explain.baselines import Baseline
from jdl.explain.features import by_site, site_features
from jdl.explain.method import Method, Request
from jdl.explain.perturbations import masked_scores
from jdl.explain.subject import Inputs
from jdl.explain.targets import PREFIX
from jdl.paths import path_name
from jdl.typing import Json, Key, PyTree

MOST_INCOMPLETE = 0.01
"""Error of completeness up to which attributions sum to the scalar's difference."""

MOST_ALIKE = 0.3
"""Rank correlation with the map of a model with random last layers, from which a map fails."""

MOST_SHARED = 0.9
"""Rank correlation with the map of another class, from which a map fails."""

LAYERS = 8
"""Layers that are randomized one after another; of more, they are those at the top."""

FRACTIONS = 11
"""Shares of the input that are deleted or inserted, 0 and 1 among them."""

ORDERS = 3
"""Random maps beside which a map is shown."""


@dataclass(frozen=True)
class Card:
    """What was checked of the attributions of some rows.

    Attributes:
      completeness: error of the sum of attributions, relative to the larger of the scalar's
        difference from the baseline and 1 % of that difference's deviation over the rows, (rows,);
        None: the method promises no sum.
      randomization: layers from the last on, each with the mean Spearman correlation of the signed
        maps before and after it and those above it have random weights (Adebayo et al., 2018), over
        the sites where the input differs from the baseline.
      random_logit: the mean correlation with the map of another class; None: there is none.
      deletion, insertion: mean of the scalar while the sites of the highest attributions are
        deleted, or inserted into the baseline (Petsiuk et al., 2018), (rows,): deletion should be
        low, insertion high.
      random_deletion, random_insertion: the same of random maps.
      infidelity: squared error with which attributions tell the scalar's change where half of the
        features are deleted, relative to the change's square, after the best scaling (Yeh et al.,
        2019), (rows,): 0 is perfect, 1 tells nothing.
      sensitivity: largest relative change of the map where the input changes by 2 % of its range,
        (rows,).
      inside: share of the positive attribution inside the true boxes or masks, (rows,); None: there
        are none, and NaN of rows without one.
      area: share of the image that these cover, (rows,), with which a random pixel is inside.
      pointing: whether the pixel of the highest attribution is inside (the pointing game; Zhang et
        al., 2018), (rows,).
      center: whether the center pixel is, (rows,).
      failures: sentences about the checks that the method fails on this model.
    """

    completeness: np.ndarray | None
    randomization: tuple[tuple[str, float], ...]
    random_logit: float | None
    deletion: np.ndarray
    insertion: np.ndarray
    random_deletion: np.ndarray
    random_insertion: np.ndarray
    infidelity: np.ndarray
    sensitivity: np.ndarray
    inside: np.ndarray | None
    area: np.ndarray | None
    pointing: np.ndarray | None
    center: np.ndarray | None
    failures: tuple[str, ...] = ()

    def row(self, index: int) -> dict[str, Json]:
        """Returns the checks of one row as JSON."""
        own = {
            field.name: _rounded(value[index])
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), np.ndarray)
        }
        return {**own, **self.of_model()}

    def mean(self) -> dict[str, Json]:
        """Returns means over the rows as JSON; of `completeness` the largest."""
        own: dict[str, Json] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, np.ndarray):
                whole = value.max() if field.name == "completeness" else np.nanmean(value)
                own[field.name] = _rounded(whole)
        return {**own, **self.of_model()}

    def of_model(self) -> dict[str, Json]:
        """Returns the checks that are of all rows together as JSON."""
        return {
            "randomization": {layer: _rounded(value) for layer, value in self.randomization},
            "random_logit": None if self.random_logit is None else _rounded(self.random_logit),
            "failures": list(self.failures),
        }


def check(
    request: Request,
    method: Method,
    attributions: Inputs,
    classes: int | None = None,
    regions: np.ndarray | None = None,
) -> Card:
    """Checks the attributions of a method.

    Args:
      request: what they explain.
      method: by which.
      attributions: as the method returned them.
      classes: number of classes among which the target is one; None: it has no other class.
      regions: (rows, sites) bool, the sites of true boxes or masks; None: there are none.
    """
    baseline = getattr(method, "baseline", Baseline())
    request = dataclasses.replace(request, key=jax.random.fold_in(request.key, 1))
    embedded = request.subject.embedded
    maps = by_site(request.x, attributions, embedded)
    own = functools.partial(_maps, method=method)
    differs = _differs(request, baseline)
    orders = _orders(request, method, maps, baseline)
    card = Card(
        completeness=_completeness(request, method, maps),
        randomization=_cascade(request, own, maps, differs),
        random_logit=_random_logit(request, own, maps, differs, classes),
        **orders,
        infidelity=_infidelity(request, method, attributions, baseline),
        sensitivity=_sensitivity(request, own, maps),
        inside=None if regions is None else _inside(maps, regions),
        area=None if regions is None else _of_regions(regions, regions.mean(1)),
        pointing=None if regions is None else _at(regions, maps.argmax(1)),
        center=None if regions is None else _at(regions, _center(request)),
    )
    return dataclasses.replace(card, failures=tuple(_failures(card)))


def _maps(request: Request, method: Method) -> np.ndarray:
    return by_site(request.x, method.attribute(request), request.subject.embedded)


def _failures(card: Card) -> list[str]:
    """Returns a sentence about each check that is not passed."""
    found = []
    if card.completeness is not None and card.completeness.max() > MOST_INCOMPLETE:
        found.append(f"attributions miss the scalar by {card.completeness.max():.1%}")
    if (alike := last_correlation(card.randomization)) is not None and alike >= MOST_ALIKE:
        found.append(f"the map stays (correlation {alike:.2f}) with random last layers")
    if card.random_logit is not None and card.random_logit >= MOST_SHARED:
        found.append(f"another class has the same map (correlation {card.random_logit:.2f})")
    if card.deletion.mean() >= card.random_deletion.mean():
        found.append("deletion is no better than a random map's")
    if card.insertion.mean() <= card.random_insertion.mean():
        found.append("insertion is no better than a random map's")
    return found


def last_correlation(randomization: tuple[tuple[str, float], ...]) -> float | None:
    """Returns the correlation once the upper half of the layers is random; None: there are none."""
    if not randomization:
        return None
    return randomization[(len(randomization) + 1) // 2 - 1][1]


def _completeness(request: Request, method: Method, maps: np.ndarray) -> np.ndarray | None:
    base = method.baseline_scores(request)
    if not method.is_complete or base is None:
        return None
    wanted = request.scores().astype(np.float64) - base
    scale = np.maximum(np.abs(wanted), max(0.01 * float(wanted.std()), 1e-12))
    return np.abs(maps.sum(1) - wanted) / scale


def _differs(request: Request, baseline: Baseline) -> np.ndarray:
    """Returns where inputs differ from the baseline, (rows, sites) bool."""
    bases = baseline.of(request)
    away = {
        name: np.abs(np.asarray(x) - np.asarray(bases[name])).max(0)
        for name, x in request.x.items()
    }
    return by_site(request.x, away, request.subject.embedded) > 0


def correlations(a: np.ndarray, b: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Returns Spearman's correlation of the kept sites of each row, NaN where one is constant."""
    from scipy.stats import rankdata

    found = np.full(len(a), np.nan)
    for row, keep in enumerate(kept):
        if keep.sum() < 3:
            continue
        x, y = (rankdata(each[row][keep]) for each in (a, b))
        x, y = x - x.mean(), y - y.mean()
        scale = np.sqrt((x**2).sum() * (y**2).sum())
        found[row] = (x * y).sum() / scale if scale else np.nan
    return found


def _mean(values: np.ndarray) -> float:
    """Returns the mean; a map that is constant is not alike any other."""
    return float(np.nan_to_num(values).mean())


def _cascade(
    request: Request, maps_of: Any, maps: np.ndarray, differs: np.ndarray
) -> tuple[tuple[str, float], ...]:
    """Returns the correlation as the layers are randomized from the last on."""
    params = request.params
    layers = _layers_with_params(request)[::-1][:LAYERS]
    if not layers:
        return ()
    fresh = _fresh(request, jax.random.fold_in(request.key, 2))
    found = []
    for count in range(1, len(layers) + 1):
        mixed = _replaced(params, fresh, layers[:count])
        changed = maps_of(dataclasses.replace(request, params=mixed))
        found.append((layers[count - 1], _mean(correlations(maps, changed, differs))))
    return tuple(found)


def _fresh(request: Request, key: Key) -> PyTree:
    """Returns parameters as a new model has them.

    Kernels that begin at one value, as the last ones of forecasters do at 0, would leave no map to
    compare: they are normal, with the deviation of the trained ones.
    """
    subject = request.subject
    batch = request.take(np.arange(1)).rows["batch"]
    if PREFIX in batch:  # a source from a file has no translation
        batch = {subject.task.targets: batch[PREFIX], **batch}
    init = jax.jit(lambda key, batch: subject.task.init(subject.model, key, batch)["params"])
    leaves, treedef = jax.tree.flatten(init(key, batch))
    found = [
        np.std(old) * jax.random.normal(jax.random.fold_in(key, index), new.shape, new.dtype)
        if new.ndim > 1 and np.ptp(new) == 0
        else new
        for index, (old, new) in enumerate(
            zip(jax.tree.leaves(request.params), leaves, strict=True)
        )
    ]
    return jax.tree.unflatten(treedef, found)


def _replaced(params: PyTree, fresh: PyTree, layers: list[str]) -> PyTree:
    def choose(path: Any, old: Any, new: Any) -> Any:
        return new if _module(path) in layers else old

    return jax.tree_util.tree_map_with_path(choose, params, fresh)


def _module(path: Any) -> str:
    return path_name(path[:-1])


def _layers_with_params(request: Request) -> list[str]:
    """Returns the modules that have parameters, in order of calls."""
    leaves = jax.tree_util.tree_leaves_with_path(request.params)
    owners = dict.fromkeys(_module(path) for path, _ in leaves)
    first = request.take(np.arange(1))
    called = [path for path, _ in request.subject.layers(first.x, first.rows)]
    place = {path: index for index, path in enumerate(called)}
    # Those that are not called, such as a table at the root, come first.
    return sorted(owners, key=lambda path: place.get(path, -1))


def _random_logit(
    request: Request, maps_of: Any, maps: np.ndarray, differs: np.ndarray, classes: int | None
) -> float | None:
    """Returns the mean correlation with the map of another class."""
    name = next((n for n in ("label", "token") if n in request.rows["target"]), None)
    if name is None or classes is None or classes < 2:
        return None
    rng = np.random.default_rng(0)
    moved = rng.integers(1, classes, request.count)
    target = request.rows["target"]
    other = (np.asarray(target[name]) + moved) % classes
    rows = {**request.rows, "target": {**target, name: other.astype(np.int32)}}
    return _mean(correlations(maps, maps_of(dataclasses.replace(request, rows=rows)), differs))


def _orders(
    request: Request, method: Method, maps: np.ndarray, baseline: Baseline
) -> dict[str, Any]:
    """Returns deletion and insertion, of the map and of random ones."""
    x, embedded = request.x, request.subject.embedded
    whole = site_features(x, embedded)
    by_sites = dataclasses.replace(request, features=whole)
    rng = np.random.default_rng(0)
    shares = np.linspace(0, 1, FRACTIONS)
    # Random maps are as coarse as those of the method.
    ids = whole if method.is_finest else request.features
    places = np.concatenate([np.ravel(ids[name]) for name in x])

    def curves(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ranks = (-values).argsort(1, kind="stable").argsort(1, kind="stable")
        first = ranks < (shares * values.shape[1])[:, None, None]  # (fractions, rows, sites)
        deleted = masked_scores(by_sites, 1.0 - first, baseline).mean(1)
        return deleted, masked_scores(by_sites, 1.0 * first, baseline).mean(1)

    deletion, insertion = curves(maps)
    random = [
        curves(rng.random((request.count, int(places.max()) + 1))[:, places]) for _ in range(ORDERS)
    ]
    deleted, inserted = np.mean(random, 0)
    return {
        "deletion": deletion,
        "insertion": insertion,
        "random_deletion": deleted,
        "random_insertion": inserted,
    }


def _infidelity(
    request: Request, method: Method, attributions: Inputs, baseline: Baseline
) -> np.ndarray:
    """Returns how badly attributions tell the scalar's change, after the best scaling."""
    rng, count = np.random.default_rng(0), request.num_features
    keep = (rng.random((16, count)) < 0.5).astype(np.float32)
    changes = request.scores()[:, None] - masked_scores(request, keep, baseline)
    told = np.zeros(changes.shape)
    base = jax.tree.map(lambda leaf: np.asarray(leaf).mean(0), baseline.of(request))
    for name, x in request.x.items():
        weights = np.asarray(attributions[name], np.float64)
        if method.is_local:
            weights = weights * (np.asarray(x) - base[name])
        elif weights.shape != x.shape:  # of a whole pixel or token
            joint = weights.shape[-1] == 1 and weights.ndim == x.ndim
            weights = weights / (x.shape[-1] if joint else 1)
        weights = np.broadcast_to(weights, x.shape)
        ids = np.broadcast_to(request.features[name], x.shape[1:])
        flat = weights.reshape(len(weights), -1)
        sums = np.stack([np.bincount(ids.ravel(), row, count) for row in flat])
        told += sums @ (1 - keep).T
    scale = (told * changes).sum(1) / np.maximum((told**2).sum(1), 1e-30)
    error = ((scale[:, None] * told - changes) ** 2).sum(1)
    return error / np.maximum((changes**2).sum(1), 1e-30)


def _sensitivity(request: Request, maps_of: Any, maps: np.ndarray, draws: int = 2) -> np.ndarray:
    """Returns the largest relative change of the map under small changes of the input."""
    size = np.maximum(np.linalg.norm(maps, axis=1), 1e-30)
    found = np.zeros(len(maps))
    for draw in range(draws):
        key = jax.random.fold_in(request.key, 10 + draw)

        def moved(x: Any, key: Key = key) -> Any:
            inner = tuple(range(1, x.ndim))
            reach = 0.02 * (x.max(inner, keepdims=True) - x.min(inner, keepdims=True))
            return x + reach * np.asarray(jax.random.uniform(key, x.shape, minval=-1, maxval=1))

        near = maps_of(dataclasses.replace(request, x=jax.tree.map(moved, request.x)))
        found = np.maximum(found, np.linalg.norm(near - maps, axis=1) / size)
    return found


def _inside(maps: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """Returns the share of the positive attribution inside of regions; 0 of a map without any."""
    positive = np.maximum(maps, 0)
    share = (positive * regions).sum(1) / np.maximum(positive.sum(1), 1e-30)
    return _of_regions(regions, share)


def _of_regions(regions: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Returns values of rows (rows,), NaN of those without a region."""
    return np.where(regions.any(1), values, np.nan)


def _at(regions: np.ndarray, places: Any) -> np.ndarray:
    """Returns whether a site of each row is inside, (rows,) float; NaN of rows without a region."""
    return _of_regions(regions, regions[np.arange(len(regions)), places].astype(float))


def _center(request: Request) -> int:
    """Returns the site of the center pixel."""
    _, height, width, _ = next(iter(request.x.values())).shape
    return (height // 2) * width + width // 2


def _rounded(value: Any) -> Json:
    return round(float(value), 6) if np.isfinite(value) else None
