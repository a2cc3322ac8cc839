"""Batches of a split: gathered from arrays in memory, or streamed by Grain.

Both give the same examples in the same order. Position p of training is example
`permutation(seed, p // n)[p % n]`, or `p % n` with `shuffle=False`. A batch is therefore a
function of the step alone: a run resumes at any step without replaying earlier ones, each epoch has
every example once, and batches span epoch boundaries. A step input is what the compiled step takes:
the batch if streamed, the indices of its examples if in memory, with their epochs where a device
transform reads these (`Positions`). Evaluation reads a split in order
and pads its last batch with rows whose `mask` is False.
"""

import importlib.machinery
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jdl.data.arrays import ArraySource
from jdl.data.base import Data
from jdl.data.examples import apply_transforms, read_transformed, stack_examples
from jdl.data.order import Mixing, epoch_numbers, example_indices, training_order
from jdl.data.sources import Source, innermost, root_indices
from jdl.errors import UserError
from jdl.typing import FILE_MODULE

IN_MEMORY_BYTES = 1 << 30
"""`pipeline="auto"` keeps splits up to this size in memory, the training split on the device."""

ENDLESS = 2**62
"""Batches of a training stream: more than any run takes."""


class Positions(NamedTuple):
    """Where the examples of a training batch come from."""

    index: Any  # of each example in the training split, (rows,) int32
    epoch: Any  # passes over the split before it, (rows,) int32

    def add_to(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the batch with `index` and `epoch`.

        Raises:
          UserError: the data has an array of that name.
        """
        named = self._asdict()
        if clash := sorted(named.keys() & batch.keys()):
            raise UserError(
                f"the data has an array {clash[0]!r}, by which a device transform finds the "
                f"position of an example: give it another name"
            )
        return {**batch, **named}


def training_shapes(data: Data, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Returns shapes and dtypes of a batch with what training adds to it for device transforms."""
    if not data.needs_positions:
        return dict(batch)
    rows = jax.ShapeDtypeStruct(batch["mask"].shape, np.int32)
    return Positions(rows, rows).add_to(batch)


@dataclass(frozen=True)
class Shard:
    """The contiguous part of every global batch that this process reads."""

    index: int = 0
    count: int = 1

    def positions(self, step: int, batch_size: int) -> np.ndarray:
        """Returns this process's positions in the batch of `step`."""
        local = batch_size // self.count
        return step * batch_size + self.index * local + np.arange(local)


@dataclass(frozen=True)
class InMemory:
    """A split in memory; training batches are gathered from it inside the compiled step."""

    arrays: dict[str, np.ndarray]
    shuffle: bool = True
    needs_positions: bool = False  # step inputs are Positions
    mixing: Mixing | None = None  # how streams of examples take turns

    def __len__(self) -> int:
        """Number of examples."""
        return len(next(iter(self.arrays.values())))

    def examples(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the examples at `indices` as a batch."""
        return {name: array[indices] for name, array in self.arrays.items()}

    def step_input(
        self, step: int, batch_size: int, seed: int, shard: Shard
    ) -> np.ndarray | Positions:
        """Returns example indices (rows,) int32 of the batch of `step`."""
        rows = shard.positions(step, batch_size)
        indices, epochs = training_order(rows, len(self), self.mixing, seed, self.shuffle)
        return Positions(indices, epochs) if self.needs_positions else indices

    def step_inputs(
        self, start: int, batch_size: int, seed: int, shard: Shard, workers: int = 0
    ) -> Iterator[np.ndarray | Positions]:
        """Yields endless training step inputs from `start`; `workers` has no effect in memory."""
        del workers
        for step in itertools.count(start):
            yield self.step_input(step, batch_size, seed, shard)

    def evaluation_batches(
        self, batch_size: int, shard: Shard, workers: int = 0
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yields the examples in order; see `evaluation_batch`."""
        del workers
        steps = range(-(-len(self) // batch_size))
        return (evaluation_batch(self, step, batch_size, shard) for step in steps)


@dataclass(frozen=True)
class Streamed:
    """A split whose batches Grain reads ahead, in threads or worker processes."""

    source: Source
    data: Data
    split: str = "train"  # its name, for errors
    lengths: np.ndarray | None = None  # of the examples, (n,) int32, for `Data.buckets`

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.source)

    def examples(
        self, indices: np.ndarray, draws: Sequence[tuple[int, ...]] | None = None
    ) -> dict[str, np.ndarray]:
        """Returns the examples at `indices` as a batch; for `draws` see `read_transformed`."""
        examples = read_transformed(self.data, self.source, indices, self.split, draws)
        return stack_examples(examples, indices, self.split)

    def step_input(
        self, step: int, batch_size: int, seed: int, shard: Shard, cut: bool = True
    ) -> dict[str, np.ndarray]:
        """Returns the batch of `step` itself; `cut=False` leaves its arrays whole."""
        longest = None
        if self.data.buckets is None or self.lengths is None:
            rows = shard.positions(step, batch_size)
            mixing = getattr(self.source, "mixing", None)
            indices, epochs = training_order(rows, len(self), mixing, seed, self.data.shuffle)
        else:
            rows, indices, longest = self._bucket(step, batch_size, seed, shard)
            epochs = epoch_numbers(rows, len(self))
        draws = None
        if self.data.random_transform:
            draws = [(seed, *each) for each in zip(epochs.tolist(), indices.tolist(), strict=True)]
        batch = self.examples(indices, draws)
        if self.data.buckets and longest is not None and cut:
            batch = self.data.buckets.cut(batch, longest)
        if self.data.needs_positions:
            batch = Positions(indices, epochs).add_to(batch)
        return {**batch, "mask": np.ones(len(rows), bool)}

    def _bucket(
        self, step: int, batch_size: int, seed: int, shard: Shard
    ) -> tuple[np.ndarray, np.ndarray, int]:
        """Returns this process's positions and examples, and the longest of the whole batch."""
        buckets, lengths = self.data.buckets, self.lengths
        assert buckets is not None
        assert lengths is not None
        count = max(1, min(buckets.window, len(self) // batch_size))
        window, place = divmod(step, count)
        positions = window * count * batch_size + np.arange(count * batch_size)
        indices = example_indices(positions, len(self), seed)
        shape = (count, batch_size)
        chosen = buckets.choose(positions.reshape(shape), lengths[indices], seed, window, place)
        local = batch_size // shard.count
        own = chosen[shard.index * local :][:local]
        return positions[own], indices[own], int(lengths[indices[chosen]].max())

    def step_inputs(
        self, start: int, batch_size: int, seed: int, shard: Shard, workers: int = 0
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yields endless training batches from `start`, prefetched by threads or `workers`."""

        def load(index: int) -> dict[str, np.ndarray]:
            return self.step_input(start + index, batch_size, seed, shard)

        return self._read_ahead(load, ENDLESS, workers)

    def evaluation_batches(
        self, batch_size: int, shard: Shard, workers: int = 0
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yields the examples in order, prefetched as in training; see `evaluation_batch`."""

        def load(step: int) -> dict[str, np.ndarray]:
            return evaluation_batch(self, step, batch_size, shard)

        return self._read_ahead(load, -(-len(self) // batch_size), workers)

    def _read_ahead(
        self, load: Callable[[int], dict[str, np.ndarray]], count: int, workers: int
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yields `load(0), ..., load(count - 1)`, prefetched by threads or `workers` processes."""
        import grain

        dataset = grain.MapDataset.range(count).map(load)
        if workers:
            _send_by_value(self.data, *self.data.transforms, self.source)
            options = grain.MultiprocessingOptions(num_workers=workers)
            return iter(dataset.to_iter_dataset().mp_prefetch(options))
        # An element is a batch, so a larger buffer would hold many batches in memory.
        options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
        return iter(dataset.to_iter_dataset(options))


Pipeline = InMemory | Streamed


def to_batch(in_memory: Mapping[str, jax.Array], step_input: Any) -> dict[str, Any]:
    """Returns the batch of a step input; pure, for use in the compiled step."""
    if isinstance(step_input, Mapping):
        return dict(step_input)
    indices = step_input.index if isinstance(step_input, Positions) else step_input
    batch = {name: array[indices] for name, array in in_memory.items()}
    if isinstance(step_input, Positions):
        batch = step_input.add_to(batch)
    return {**batch, "mask": jnp.ones(indices.shape, bool)}


def evaluation_batch(
    pipeline: Pipeline, step: int, batch_size: int, shard: Shard
) -> dict[str, np.ndarray]:
    """Returns this process's rows of batch `step` of a split in order.

    Rows past the end repeat the first example under a `mask` of False, so that every process gives
    as many batches, each of `batch_size / shard.count` rows.
    """
    positions = shard.positions(step, batch_size)
    mask = positions < len(pipeline)
    return {**pipeline.examples(np.where(mask, positions, 0)), "mask": mask}


def open_pipeline(data: Data, source: Source, name: str) -> Pipeline:
    """Returns the pipeline of a split; one in memory reads all examples now.

    Raises:
      UserError: examples differ in shape, or have no numeric arrays.
    """
    probe = np.unique(np.linspace(0, len(source) - 1, 8).astype(int))
    examples = read_transformed(data, source, probe, name)
    first = examples[0]
    if not first:
        raise UserError(f"split {name!r} holds no numbers after the transforms, only text")
    size = sum(value.nbytes for value in first.values()) * len(source)
    stack_examples(examples, probe, name)
    if not fits_in_memory(data, size, name):
        return Streamed(source, data, name, _lengths(data, source) if name == "train" else None)
    arrays = {k: np.empty((len(source), *v.shape), v.dtype) for k, v in first.items()}
    chunk = 1024
    read = _chunk_reader(data, source, name)
    for begin in range(0, len(source), chunk):
        indices = np.arange(begin, min(begin + chunk, len(source)))
        for key, values in read(indices).items():
            arrays[key][indices] = values
    mixing = getattr(source, "mixing", None)
    return InMemory(arrays, data.shuffle, data.needs_positions, mixing)


def _lengths(data: Data, source: Source) -> np.ndarray | None:
    """Returns the lengths of the training examples, (n,) int32, if they are grouped by these.

    Raises:
      UserError: the data set requires an order of its own.
    """
    if data.buckets is None:
        return None
    if data.required_batch_size is not None or getattr(source, "mixing", None) is not None:
        raise UserError(
            f"data.buckets changes the order, which {type(data).__name__} requires: set it to None"
        )
    found = np.empty(len(source), np.int32)
    for begin in range(0, len(source), 1024):
        indices = np.arange(begin, min(begin + 1024, len(source)))
        examples = read_transformed(data, source, indices, "train")
        found[indices] = [data.buckets.length(each) for each in examples]
    return found


def _chunk_reader(
    data: Data, source: Source, name: str
) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Returns a function of indices that reads transformed examples, stacked.

    Rows of arrays are not taken apart into examples.
    """
    rows, root = root_indices(source), innermost(source)
    if isinstance(root, ArraySource) and not data.transforms:
        whole = root.arrays
        if all(array.dtype != object for array in whole.values()):
            return lambda indices: apply_transforms(
                data, {key: array[rows[indices]] for key, array in whole.items()}
            )

    def read(indices: np.ndarray) -> dict[str, np.ndarray]:
        return stack_examples(read_transformed(data, source, indices, name), indices, name)

    return read


def fits_in_memory(data: Data, size: int, split: str = "train") -> bool:
    """Returns whether a split of `size` bytes is kept in memory.

    Raises:
      UserError: it must be and cannot, since its batches change.
    """
    if split == "train" and data.streamed_by:
        if data.pipeline == "in_memory":
            raise UserError(
                f"{data.streamed_by}, where a split in memory stays as it is: set data.pipeline to "
                f"auto or grain"
            )
        return False
    return data.pipeline == "in_memory" or (data.pipeline == "auto" and size <= IN_MEMORY_BYTES)


def _send_by_value(*objects: Any) -> None:
    """Makes cloudpickle send code of experiment files by value: workers cannot import it."""
    import cloudpickle
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain reads flags that only an absl program parses
    for name, module in list(sys.modules.items()):
        if name.startswith(FILE_MODULE):  # an experiment file, or one that it imports
            cloudpickle.register_pickle_by_value(module)
    for each in objects:
        name = getattr(each, "__module__", "")
        known = not name or name == "__main__" or "." in name or name not in sys.modules
        if not known and importlib.machinery.PathFinder.find_spec(name) is None:
            cloudpickle.register_pickle_by_value(sys.modules[name])
