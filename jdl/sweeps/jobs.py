"""Trains several experiments, those that differ only in seeds or numbers in one vmapped step."""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO, TextIOBase
from pathlib import Path
from typing import Any, Literal

import jax

from jdl.config.experiment_file import ExperimentFile
from jdl.config.overrides import flatten
from jdl.data.splits import Splits
from jdl.errors import first_line
from jdl.experiment import Experiment
from jdl.hooks import Hook
from jdl.metrics import Packed
from jdl.parallel import Steps
from jdl.step import init
from jdl.sweeps.compile import compile_vectorized
from jdl.sweeps.loop import Member, redirect_output, train_vectorized
from jdl.sweeps.vectorized import VectorizedSteps, structure
from jdl.trainer.allocator import configure_allocator
from jdl.trainer.api import open_loop, train
from jdl.trainer.compilation_cache import enable_compilation_cache
from jdl.trainer.interrupt import Interruption
from jdl.trainer.loop import TrainingLoop
from jdl.trainer.opening import restore_finished
from jdl.trainer.record import FoundRun, find_run
from jdl.trainer.run import Run
from jdl.trainer.training_run import TrainingRun
from jdl.typing import Json

Vectorize = Literal["auto", "always", "never"]
"""Whether runs are vectorized: where that is faster, wherever it is possible, or never."""

BENCHMARK_SECONDS = 0.5
"""Duration of each measurement under `auto`."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run to be trained.

    Attributes:
      experiment: what to train.
      workdir: the run directory.
      overrides: what was changed in the experiment of the file, by path.
      data: the splits, if they are open.
      hooks: the caller's own.
      output: file for printed lines; None for standard output, where of several vectorized runs
        only the first prints.
    """

    experiment: Experiment
    workdir: Path
    overrides: Mapping[str, Json] = field(default_factory=dict)
    data: Splits | None = None
    hooks: Sequence[Hook] = ()
    output: TextIOBase | None = None


Outcome = Run | Exception
"""The finished run, or the error that it failed with."""


def train_jobs(
    jobs: Sequence[Job],
    vectorize: Vectorize,
    callback: Callable[[int, Outcome], bool],
    *,
    file: ExperimentFile | None = None,
    notify: Callable[[str], None] = print,
) -> bool:
    """Trains each job as `jdl.train` would, those of one architecture in one vmapped step.

    Runs can be vectorized if their experiments differ only in the seed and in numbers of model,
    task and optimizer, such as learning rate, weight decay, dropout or label smoothing. Their
    losses equal those of single runs up to rounding, and each has a run directory of its own, which
    can be resumed by itself.

    Args:
      jobs: what to train.
      vectorize: `always` raises where runs of one architecture cannot be vectorized; `auto` trains
        them sequentially instead, also where that is faster.
      callback: called with index and outcome of each job that has ended; returns whether to start
        another.
      file: the file of the experiments.
      notify: called with a line about the choice made.

    Returns:
      Whether any jobs were vectorized.

    Raises:
      UserError: under `always`, names what cannot be vectorized, and why.
      Interrupted: on SIGTERM or Ctrl-C, after saving.
    """
    remaining = []
    for index, job in enumerate(jobs):
        configure_allocator(job.experiment.runtime.malloc_arenas)
        with redirect_output(job.output):
            try:
                found = _find(job, file)
                outcome = restore_finished(found) if found.is_finished else None
            except Exception as error:
                outcome = error
        if outcome is None:
            remaining.append(index)
        elif not callback(index, outcome):
            return False
    enable_compilation_cache()
    vectorized = False
    for group in _groups(jobs, remaining, vectorize, notify):
        if group.compiled is None:
            for index in group.indices:
                if not callback(index, _train_alone(jobs[index], file)):
                    return vectorized
        else:
            vectorized = True
            _train_group(jobs, group.indices, group.compiled, file, callback)
    return vectorized


def _train_alone(job: Job, file: ExperimentFile | None) -> Outcome:
    with redirect_output(job.output):
        try:
            return train(
                job.experiment,
                job.workdir,
                file=file,
                overrides=job.overrides,
                data=job.data,
                hooks=job.hooks,
            )
        except Exception as error:
            return error


def _train_group(
    jobs: Sequence[Job],
    indices: Sequence[int],
    compiled: VectorizedSteps,
    file: ExperimentFile | None,
    callback: Callable[[int, Outcome], bool],
) -> None:
    """Trains jobs that were compiled together; a job that fails does not affect the others."""
    interruption, pending = Interruption(), dict.fromkeys(indices)
    runs: dict[int, Run] = {}
    members: list[Member] = []

    def ended(index: int, error: Exception | None) -> None:
        del pending[index]
        callback(index, error or runs[index])

    with contextlib.ExitStack() as stack:
        stack.enter_context(interruption)
        outputs = _outputs([jobs[index].output for index in indices])
        for place, (index, output) in enumerate(zip(indices, outputs, strict=True)):
            try:
                with redirect_output(output):
                    steps = functools.partial(compiled.steps, place)
                    loop = stack.enter_context(
                        _open(jobs[index], file, interruption, steps, len(indices))
                    )
            except Exception as error:
                ended(index, error)
            else:
                runs[index] = loop.run
                members.append(Member(loop, place, output, functools.partial(ended, index)))
        try:
            train_vectorized(members, compiled, interruption)
        except Exception as error:  # of the shared step, so that none of the runs can continue
            for index in [*pending]:
                ended(index, error)


def _open(
    job: Job,
    file: ExperimentFile | None,
    interruption: Interruption,
    steps: Callable[[Any], Steps],
    vectorized: int,
) -> contextlib.AbstractContextManager[TrainingLoop]:
    return open_loop(
        _find(job, file),
        interruption,
        file=file,
        overrides=job.overrides,
        data=job.data,
        hooks=job.hooks,
        compile=lambda _program, _in_memory, step_input: steps(step_input),
        vectorized=vectorized,
    )


def _find(job: Job, file: ExperimentFile | None) -> FoundRun:
    return find_run(job.workdir, job.experiment, file.name if file else "experiment")


def _outputs(given: Sequence[TextIOBase | None]) -> list[TextIOBase | None]:
    """Returns the outputs, with a buffer for all runs on standard output but the first."""
    shown = next((place for place, each in enumerate(given) if each is None), None)
    return [
        StringIO() if each is None and place != shown else each for place, each in enumerate(given)
    ]


@dataclass(frozen=True)
class _Group:
    """Indices of jobs, with the steps that train them together; None to train sequentially."""

    indices: Sequence[int]
    compiled: VectorizedSteps | None = None


def _groups(
    jobs: Sequence[Job], indices: Sequence[int], vectorize: Vectorize, notify: Callable[[str], None]
) -> Iterator[_Group]:
    """Groups jobs that are trained together."""
    for batchable in _grouped(indices, lambda index: _architecture(jobs[index].experiment)):
        if vectorize == "never" or len(batchable) == 1:
            yield _Group(batchable)
        else:
            yield from _same_architecture(jobs, batchable, vectorize, notify)


def _same_architecture(
    jobs: Sequence[Job], indices: Sequence[int], vectorize: Vectorize, notify: Callable[[str], None]
) -> list[_Group]:
    """Groups jobs of one architecture by the structure of their states."""
    first = jobs[indices[0]]
    try:
        probe = TrainingRun(first.experiment, "", first.workdir, first.data)
    except Exception:
        return [_Group(indices)]  # training each by itself reports the error
    groups = _grouped(indices, lambda index: _structure(probe, jobs[index].experiment))
    return [
        _Group(group, _compiled(probe, [jobs[i].experiment for i in group], vectorize, notify))
        for group in groups
    ]


def _compiled(
    probe: TrainingRun,
    experiments: Sequence[Experiment],
    vectorize: Vectorize,
    notify: Callable[[str], None],
) -> VectorizedSteps | None:
    """Returns the vectorized steps of experiments, or None if they are trained sequentially."""
    count = len(experiments)
    if count == 1:
        return None
    try:
        compiled = compile_vectorized(probe, experiments)
        if vectorize == "always":
            return compiled
        vectorized, sequential = _benchmark(probe, compiled, experiments)
    except Exception as error:
        if vectorize == "always":
            raise
        notify(f"{count} runs are trained sequentially: {first_line(error)}")
        return None
    way = "vectorized" if vectorized > sequential else "sequentially"
    notify(
        f"{count} runs are trained {way}: {vectorized:.0f} steps/s vectorized, "
        f"{sequential:.0f} steps/s sequentially"
    )
    return compiled if vectorized > sequential else None


def _grouped(indices: Sequence[int], key: Callable[[int], Any]) -> list[list[int]]:
    """Groups indices by equal keys, which need not be hashable, in order of first occurrence."""
    keys: list[Any] = []
    groups: list[list[int]] = []
    for index in indices:
        found = key(index)
        if found not in keys:
            keys.append(found)
            groups.append([])
        groups[keys.index(found)].append(index)
    return groups


def _architecture(experiment: Experiment) -> dict[str, Json]:
    """Returns all fields of an experiment, without the numbers that vectorized runs may vary."""
    return {
        path: "a number" if _may_vary(path, value) else value
        for path, value in flatten(experiment).items()
    }


def _may_vary(path: str, value: Json) -> bool:
    root = path.partition(".")[0]
    return path == "seed" or (root in ("model", "task", "optimizer") and isinstance(value, float))


def _structure(probe: TrainingRun, experiment: Experiment) -> Any:
    """Returns the structure of an experiment's state: without momentum, for example, it is less."""
    program, key = experiment.program(probe.steps), jax.random.key(0)
    return structure(jax.eval_shape(functools.partial(init, program), key, probe.batch))


def _benchmark(
    probe: TrainingRun, compiled: VectorizedSteps, experiments: Sequence[Experiment]
) -> tuple[float, float]:
    """Benchmarks vmapped against sequential steps/s on throwaway states."""
    first, seeds = probe.experiment, [experiment.seed for experiment in experiments]
    shared, count = len({*seeds}) == 1, first.runtime.steps_per_execution
    pipeline = probe.pipeline("train")
    inputs = [
        pipeline.step_inputs(0, first.batch_size, seed, probe.shard)
        for seed in (seeds[:1] if shared else seeds)
    ]
    states = [
        compiled.steps(i, pipeline.step_input(0, first.batch_size, seed, probe.shard)).init(
            jax.random.key(seed)
        )
        for i, seed in enumerate(seeds)
    ]
    stack = compiled.stack(range(len(seeds)), states)
    probe.state = probe.compiled.init(jax.random.key(first.seed))

    def vectorized() -> Packed:
        read = [[next(each) for each in inputs] for _ in range(count)]
        return stack.update([each[0] for each in read] if shared else read)

    def sequential() -> Packed:
        return probe.update([next(inputs[0]) for _ in range(count)])

    rates = len(seeds) * count * _rate(vectorized), count * _rate(sequential)
    probe.state = None
    return rates


def _rate(execute: Callable[[], Packed]) -> float:
    """Returns executions per second, without compiling."""
    before, count = jax.block_until_ready(execute()), 0
    begun = time.perf_counter()
    while time.perf_counter() - begun < BENCHMARK_SECONDS:
        now = execute()
        jax.block_until_ready(before)  # two in flight, as in training
        before, count = now, count + 1
    jax.block_until_ready(before)
    return count / (time.perf_counter() - begun)
