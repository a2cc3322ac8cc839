"""jdl itself: the step that `jdl train` compiles, on a batch in device memory."""

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jdl
from benchmarks.measure import Protocol
from benchmarks.trainer import Case, first_batch
from benchmarks.workloads import Workload
from jdl.hooks import Callback, Hook
from jdl.models import DCGAN
from jdl.parallel import Steps
from jdl.state import TrainState
from jdl.step import Program, transform
from jdl.tasks import GAN, row_keys, with_row_keys
from jdl.trainer.allocator import configure_allocator


def make_case(workload: Workload, dtype: str, threads: int) -> Case:
    """A workload with the initial weights of all implementations."""
    experiment = load(workload, dtype)
    arrays = workload.examples(200 * workload.batch if workload.loop else None)
    program = make_program(experiment)
    batch = {name: array[: workload.batch] for name, array in arrays.items()}
    state = compile_steps(experiment, program, batch).init(jax.random.key(0))
    leaves = jax.tree_util.tree_flatten_with_path(state.params)[0]
    optimizer: Any = experiment.optimizer
    task: Any = experiment.task
    return Case(
        name=workload.name,
        model={f.name: getattr(experiment.model, f.name) for f in _plain(experiment.model)},
        params={_name(path): np.asarray(leaf) for path, leaf in leaves},
        arrays=arrays,
        batch=workload.batch,
        dtype=dtype,
        loop=workload.loop,
        threads=threads,
        rate=optimizer.learning_rate,
        eps=optimizer.eps,
        smoothing=getattr(task, "label_smoothing", 0.0),
        crop_and_flip=4 if workload.random else 0,
        **(_of_gan(experiment, state) if isinstance(task, GAN) else {}),
    )


def _of_gan(experiment: jdl.Experiment, state: TrainState) -> dict[str, Any]:
    """The fields of a GAN's case; the noise is what `jdl.models.DCGAN` draws."""
    task, model = cast(GAN, experiment.task), cast(DCGAN, experiment.model)
    mask = jnp.ones(experiment.batch_size, bool)

    def draw(step: jax.Array) -> jax.Array:
        keys = row_keys(with_row_keys({"mask": mask}, jax.random.fold_in(state.key, step)))
        return jax.vmap(lambda key: jax.random.normal(key, (model.latent_dim,)))(keys)

    noise = np.asarray(jax.vmap(draw)(jnp.arange(Protocol.curve)))
    return {"noise": noise, "r1": task.r1, "penalty_every": task.penalty_every}


def load(workload: Workload, dtype: str) -> jdl.Experiment:
    """Loads the experiment, and configures memory allocation as `jdl train` does."""
    experiment = workload.load(dtype)
    configure_allocator(experiment.runtime.malloc_arenas)
    return experiment


def make_program(experiment: jdl.Experiment) -> Program:
    """The program of `jdl train` for an experiment with a constant learning rate."""
    return Program(
        experiment.compute_model(),
        experiment.task,
        experiment.transformation(1),
        experiment.data.device_transforms,
        experiment.num_microbatches,
        experiment.compiler_options,
    )


def compile_steps(experiment: jdl.Experiment, program: Program, batch: dict[str, Any]) -> Steps:
    """Compiles the steps for batches of this shape."""
    mask = np.ones(experiment.batch_size, bool)
    return experiment.strategy.compile(program, {}, {**batch, "mask": mask})


class Bare:
    """The compiled step on one batch."""

    def __init__(self, experiment: jdl.Experiment, case: Case) -> None:
        batch = {**first_batch(case), "mask": np.ones(case.batch, bool)}
        self._program = make_program(experiment)
        self._steps = compile_steps(experiment, self._program, first_batch(case))
        self._batch = jax.tree.map(jnp.asarray, self._steps.put(batch))
        self._state = self._fresh()

    def gradient(self) -> tuple[float, float]:
        """See `Trainer.gradient`."""

        @jax.jit
        def measure(state: TrainState, batch: Any) -> tuple[Any, jax.Array]:
            program, key = self._program, jax.random.fold_in(state.key, state.step)
            batch = with_row_keys(transform(program, batch, None), key)
            gradients, weight, _, metrics = program.task.gradient(program.model, state, batch, key)
            # A game has a weight for each player.
            mean = jax.tree.map(lambda w, tree: optax.tree.scale(1 / w, tree), weight, gradients)
            return metrics["loss"], optax.tree.norm(mean)

        loss, norm = measure(self._state, self._batch)
        return loss.compute(), float(norm)

    def curve(self, steps: int) -> list[float]:
        """See `Trainer.curve`."""
        state, losses = self._fresh(), []
        for _ in range(steps):
            state, packed = self._steps.update(state, self._batch)
            losses.append(packed.unpack()[0]["loss"].compute())
        return losses

    def run(self, steps: int) -> float:
        """See `Trainer.run`."""
        begun, before = time.perf_counter(), None
        for _ in range(steps):
            self._state, metrics = self._steps.update(self._state, self._batch)
            jax.block_until_ready(before)  # two in flight, as in the loop
            before = metrics
        jax.block_until_ready(self._state.params)
        return time.perf_counter() - begun

    def _fresh(self) -> Any:
        return self._steps.init(jax.random.key(0))


class Loop(Bare):
    """`jdl.train` as a user calls it, with a clock as its only hook."""

    def __init__(self, experiment: jdl.Experiment, case: Case) -> None:
        super().__init__(experiment, case)
        from jdl.data import Arrays
        from jdl.data.splits import Splits

        data = Arrays(
            {"train": case.arrays},
            device_transforms=experiment.data.device_transforms,
            test_fraction=0.0,
            validation_fraction=0.0,
        )
        self._experiment = dataclasses.replace(experiment, data=data)
        self._data = Splits(data)

    def run(self, steps: int) -> float:
        """See `Trainer.run`; in whole dispatches, after a few, since each run compiles anew."""
        at_once = self._experiment.runtime.steps_per_execution
        taken = -(-steps // at_once) * at_once
        clock = Clock(after=4 * at_once)
        total = clock.after + taken
        runtime = dataclasses.replace(self._experiment.runtime, log_every=total)
        changes = {"hooks": (clock,), "steps": total, "runtime": runtime}
        with tempfile.TemporaryDirectory() as folder:
            experiment = dataclasses.replace(self._experiment, **changes)
            jdl.train(experiment, Path(folder) / "run", data=self._data)
        return (clock.readings[-1] - clock.readings[0]) * steps / taken


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clock(Hook):
    """Records the time after a step and each later one."""

    after: int  # the first step whose time is read
    readings: list[float] = dataclasses.field(default_factory=list)

    def build(self, run: Any) -> Callback:
        """See `Hook`."""
        del run
        return _Reader(self)


class _Reader(Callback):
    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def __call__(self, event: Any) -> None:
        if event.step >= self._clock.after:
            self._clock.readings.append(time.perf_counter())


def build(workload: Workload, case: Case) -> Bare:
    """The trainer of a workload."""
    return (Loop if case.loop else Bare)(load(workload, case.dtype), case)


def _plain(model: Any) -> list[Any]:
    kept = (int, float, str, bool, tuple)
    fields = (f for f in dataclasses.fields(model) if f.name not in ("parent", "name"))
    return [f for f in fields if isinstance(getattr(model, f.name), kept)]


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")
