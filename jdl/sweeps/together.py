"""Training several experiments that differ in seeds or numbers: together where that can be."""

import contextlib
import functools
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import TextIOBase
from pathlib import Path
from typing import Any, Literal

import jax

from jdl.config.experiment_file import ExperimentFile
from jdl.config.overrides import flatten, snake
from jdl.data.pipeline import InMemory
from jdl.data.splits import Splits
from jdl.errors import UserError, first_line
from jdl.experiment import Experiment
from jdl.hooks import Hook
from jdl.metrics import Packed
from jdl.parallel import Steps, Strategy
from jdl.step import Program, init
from jdl.sweeps.group import Group, Member, outputs, speaking
from jdl.sweeps.vectorized import Numbers, Vectorized, structure
from jdl.tracing import with_values
from jdl.trainer.allocator import configure_allocator
from jdl.trainer.api import finished, opened, prepared, train
from jdl.trainer.compilation_cache import enable_compilation_cache
from jdl.trainer.interrupt import Interruption
from jdl.trainer.loop import Loop
from jdl.trainer.run import Run
from jdl.typing import Json

Vectorize = Literal["auto", "always", "never"]
"""Whether runs are trained together: where that is faster, wherever they can be, or not."""

TRIAL = 0.5
"""Seconds for which each way is tried under `auto`."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run that is to be trained, beside others.

    Attributes:
      experiment: what to train.
      workdir: its directory.
      overrides: what was changed in the experiment of the file.
      data: the splits, where they are open.
      hooks: the caller's own.
      output: where its lines go; None: where they always do, or of several trained together the
        first's alone.
    """

    experiment: Experiment
    workdir: Path
    overrides: Mapping[str, Json] = field(default_factory=dict)
    data: Splits | None = None
    hooks: Sequence[Hook] = ()
    output: TextIOBase | None = None


Outcome = Run | Exception
"""The finished run, or why there is none."""


def train_together(
    jobs: Sequence[Job],
    vectorize: Vectorize,
    tell: Callable[[int, Outcome], bool],
    *,
    file: ExperimentFile | None = None,
    notify: Callable[[str], None] = print,
) -> bool:
    """Trains each job as `jdl.train` would, those of one architecture together.

    Together are those whose experiments differ in the seed, and in numbers of the model, the task
    and the optimizer, such as learning rate, weight decay, dropout or label smoothing. Their losses
    are those of runs alone up to rounding, and each has a run directory that goes on alone.

    Args:
      jobs: what to train.
      vectorize: `always` raises where runs of one architecture cannot be trained together; `auto`
        then trains them one after the other, as it does where that is faster.
      tell: told of each job when it has ended, by its place; says whether to begin another.
      file: where the experiments come from.
      notify: called which way was taken.

    Returns:
      Whether any were trained together.

    Raises:
      UserError: under `always`, what cannot be vectorized, and why.
      Interrupted: on SIGTERM or Ctrl-C, after saving.
    """
    left = []
    for place, job in enumerate(jobs):
        configure_allocator(job.experiment.malloc_arenas)
        with speaking(job.output):
            try:
                run = finished(job.experiment, job.workdir, file)
            except Exception as error:
                run = error
        if run is None:
            left.append(place)
        elif not tell(place, run):
            return False
    enable_compilation_cache()
    together = False
    for batch in _batches(jobs, left, vectorize, notify):
        if batch.compiled is None:
            for place in batch.places:
                if not tell(place, _alone(jobs[place], file)):
                    return together
        else:
            together = True
            _together(jobs, batch.places, batch.compiled, file, tell)
    return together


def _alone(job: Job, file: ExperimentFile | None) -> Outcome:
    """Trains a job by itself."""
    with speaking(job.output):
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


def _together(
    jobs: Sequence[Job],
    places: Sequence[int],
    compiled: Vectorized,
    file: ExperimentFile | None,
    tell: Callable[[int, Outcome], bool],
) -> None:
    """Trains jobs that were compiled together; one that fails leaves the others be."""
    interruption, waiting = Interruption(), dict.fromkeys(places)
    shown = outputs([jobs[place].output for place in places])
    runs: dict[int, Run] = {}
    members: list[Member] = []

    def ended(place: int, error: Exception | None) -> None:
        del waiting[place]
        tell(place, error or runs[place])

    with contextlib.ExitStack() as stack:
        stack.enter_context(interruption)
        for index, (place, output) in enumerate(zip(places, shown, strict=True)):
            steps = compiled.steps(index)
            try:
                run = stack.enter_context(_opened(jobs[place], file, steps))
                run.interruption = interruption
                with speaking(output):
                    loop = _prepared(run, jobs[place], file, len(places))
            except Exception as error:
                ended(place, error)
            else:
                runs[place] = run
                members.append(Member(loop, index, output, functools.partial(ended, place)))
        try:
            Group(members, compiled, interruption).go()
        except Exception as error:
            for place in [*waiting]:
                ended(place, error)


def _opened(
    job: Job, file: ExperimentFile | None, steps: Steps
) -> contextlib.AbstractContextManager[Run]:
    return opened(
        job.experiment,
        job.workdir,
        file=file,
        data=job.data,
        hooks=job.hooks,
        compile=lambda *_: steps,
    )


def _prepared(run: Run, job: Job, file: ExperimentFile | None, together: int) -> Loop:
    return prepared(run, job.experiment, file=file, overrides=job.overrides, together=together)


@dataclass(frozen=True)
class Batch:
    """Jobs by their places, with what trains them together; None: one after the other."""

    places: Sequence[int]
    compiled: Vectorized | None = None


def _batches(
    jobs: Sequence[Job], places: Sequence[int], vectorize: Vectorize, notify: Callable[[str], None]
) -> Iterator[Batch]:
    """Which jobs are trained together, as `vectorize` says."""
    for alike in _grouped(places, lambda place: _architecture(jobs[place].experiment)):
        if vectorize == "never" or len(alike) == 1:
            yield Batch(alike)
        else:
            yield from _tried(jobs, alike, vectorize, notify)


def _tried(
    jobs: Sequence[Job], places: Sequence[int], vectorize: Vectorize, notify: Callable[[str], None]
) -> list[Batch]:
    """The batches of jobs of one architecture."""
    first = jobs[places[0]]
    try:
        probe = Run(first.experiment, "", first.workdir, first.data)
    except Exception:
        return [Batch(places)]  # each says itself what is wrong
    alike = _grouped(places, lambda place: _state(probe, jobs[place].experiment))
    experiments = [[jobs[place].experiment for place in each] for each in alike]
    return [
        Batch(each, _chosen(probe, those, vectorize, notify))
        for each, those in zip(alike, experiments, strict=True)
    ]


def _chosen(
    probe: Run,
    experiments: Sequence[Experiment],
    vectorize: Vectorize,
    notify: Callable[[str], None],
) -> Vectorized | None:
    """What trains experiments together, where that is to be."""
    if len(experiments) == 1:
        return None
    try:
        compiled = compile_together(probe, experiments)
        if vectorize == "always":
            return compiled
        together, apart = _rates(probe, compiled, experiments)
    except Exception as error:
        if vectorize == "always":
            raise
        notify(f"{len(experiments)} runs are trained one after the other: {first_line(error)}")
        return None
    way = "together" if together > apart else "one after the other"
    notify(
        f"{len(experiments)} runs are trained {way}: together they take {together:.0f} steps a "
        f"second, one after the other {apart:.0f}"
    )
    return compiled if together > apart else None


def compile_together(probe: Run, experiments: Sequence[Experiment]) -> Vectorized:
    """The compiled functions of experiments of one architecture.

    Args:
      probe: the run of the first of them, as it is alone.
      experiments: which differ in the seed and in numbers alone.

    Raises:
      UserError: what cannot be vectorized, and why.
    """
    first = experiments[0]
    if type(first.strategy).compile is not Strategy.compile:
        name = snake(type(first.strategy).__name__)
        raise UserError(f"the strategy {name} cannot be vectorized: choose another, or single")
    if jax.process_count() > 1:
        raise UserError("runs of several processes cannot be vectorized")
    leaves = [flatten(experiment) for experiment in experiments]
    paths = [
        path
        for path, value in leaves[0].items()
        if path != "seed" and any(each[path] != value for each in leaves)
    ]
    pipeline, steps = probe.pipeline("train"), probe.steps
    in_memory = pipeline.arrays if isinstance(pipeline, InMemory) else {}
    step_input = pipeline.step_input(0, first.batch_size, first.seed, probe.shard)

    def program(numbers: Numbers) -> Program:
        return with_values(first, numbers).program(steps)

    def built(paths: Sequence[str]) -> Vectorized:
        numbers = [{path: each[path] for path in paths} for each in leaves]
        compiled = Vectorized(first.strategy, program, numbers, in_memory, step_input)
        compiled.check(probe.program)
        return compiled

    try:
        return built(paths)
    except Exception as error:
        for path in paths:
            try:
                built([path])
            except Exception as because:
                raise UserError(f"{path} cannot be vectorized: {_reason(because)}") from because
        raise UserError(f"the step cannot be vectorized: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """What an error says, and where in a program outside of JAX it came up."""
    inside = str(Path(jax.__file__).parent)
    frames = traceback.extract_tb(error.__traceback__)
    frame = [frame for frame in frames if not frame.filename.startswith(inside)][-1]
    return f"{first_line(error)} ({Path(frame.filename).name}, line {frame.lineno})"


def _grouped(places: Sequence[int], key: Callable[[int], Any]) -> list[list[int]]:
    """Places whose keys are equal, in the order in which each key comes first."""
    keys: list[Any] = []
    groups: list[list[int]] = []
    for place in places:
        found = key(place)
        if found not in keys:
            keys.append(found)
            groups.append([])
        groups[keys.index(found)].append(place)
    return groups


def _architecture(experiment: Experiment) -> dict[str, Json]:
    """All of an experiment but the numbers that runs trained together may differ in."""
    return {
        path: "a number" if _is_free(path, value) else value
        for path, value in flatten(experiment).items()
    }


def _is_free(path: str, value: Json) -> bool:
    within = path.partition(".")[0] in ("model", "task", "optimizer")
    return path == "seed" or (within and isinstance(value, float))


def _state(probe: Run, experiment: Experiment) -> Any:
    """What the state of an experiment's run is made of: without momentum, say, there is less."""
    program, key = experiment.program(probe.steps), jax.random.key(0)
    return structure(jax.eval_shape(functools.partial(init, program), key, probe.batch))


def _rates(
    probe: Run, compiled: Vectorized, experiments: Sequence[Experiment]
) -> tuple[float, float]:
    """Steps a second, of all runs together and of one after the other; of states thrown away."""
    first, seeds = probe.experiment, [experiment.seed for experiment in experiments]
    alike, count = len({*seeds}) == 1, first.steps_per_dispatch
    pipeline = probe.pipeline("train")
    step_inputs = [
        pipeline.step_inputs(0, first.batch_size, seed, probe.shard)
        for seed in (seeds[:1] if alike else seeds)
    ]
    states = [compiled.steps(i).init(jax.random.key(seed)) for i, seed in enumerate(seeds)]
    stack = compiled.stack(range(len(seeds)), states, alike)
    probe.state = probe.compiled.init(jax.random.key(first.seed))

    def together() -> Packed:
        fed = [[next(step_input) for step_input in step_inputs] for _ in range(count)]
        return stack.dispatch([each[0] for each in fed] if alike else fed)

    def alone() -> Packed:
        return probe.dispatch(step_inputs[0], count)

    rates = len(seeds) * count * _rate(together), count * _rate(alone)
    probe.state = None
    return rates


def _rate(dispatch: Callable[[], Packed]) -> float:
    """Dispatches a second, once compiled."""
    before, count = jax.block_until_ready(dispatch()), 0
    begun = time.perf_counter()
    while time.perf_counter() - begun < TRIAL:
        now = dispatch()
        jax.block_until_ready(before)  # two are in flight, as in training
        before, count = now, count + 1
    jax.block_until_ready(before)
    return count / (time.perf_counter() - begun)
