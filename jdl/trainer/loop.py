"""The training loop: next batch, update, hooks, and waiting for the step before."""

import contextlib
import copy
import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NoReturn

import jax
import numpy as np

from jdl.checkpoint import CheckpointStore
from jdl.errors import UserError
from jdl.files import CheckpointMetadata, MetricsLog, RunDirectory, truncate_rows
from jdl.hooks import Callback
from jdl.hooks.rows import Rows, compute_row, with_sums
from jdl.metrics import Metrics, Packed
from jdl.optimizers import average_paths
from jdl.parallel import Compilations
from jdl.pretrained import initial_arrays, replace_arrays
from jdl.step import update
from jdl.trainer import result
from jdl.trainer.interrupt import Interrupted
from jdl.trainer.training_run import TrainingRun
from jdl.typing import Event, Json


def train_steps(loop: "TrainingLoop", step: int, until: int) -> int:
    """Trains from `step` until `until`, or until a hook stops the run.

    At most two executions are in flight: the metrics of one are read after the next was given to
    the devices, which therefore never wait for logging. Without a bound, XLA's virtual CPU devices
    abort. Only where the state is due, to be evaluated or saved, are both waited for.

    Returns:
      The step reached.

    Raises:
      Interrupted: on SIGTERM or Ctrl-C, after saving.
    """
    run, clock, late = loop.run, loop.clock, None
    inputs = run.step_inputs(step)
    while step < until and not loop.context.stop_reason:
        count, due = loop.next_execution(step, until)
        with clock.measuring("training_seconds"):
            with clock.measuring("input_seconds"):
                step_inputs = [next(inputs) for _ in range(count)]
            metrics = run.update(step_inputs)  # asynchronous: returns before they are computed
            step += count
            loop.context.steps_submitted = step
            if late is not None:
                loop.notify(*late)
            late = (step, metrics)
            interrupted = loop.is_interrupted(step)
            if due or interrupted:
                jax.block_until_ready(metrics)
        run.interruption.expect(clock.longest_execution)
        if due or interrupted:
            loop.notify(*late, state=run.state if due else None, interrupted=interrupted)
            late = None
    if late is not None:
        loop.notify(*late)
    return step


class TrainingLoop:
    """Restores a run, notifies its hooks of each step, saves it, and scores it at its end.

    Args:
      run: a run without a state yet.
    """

    def __init__(self, run: TrainingRun) -> None:
        self.run, self.context = run, LoopContext(run)
        self.clock = Clock(run.compiled.compilations)
        self._directory = RunDirectory(run.workdir)
        self._store = CheckpointStore(self._directory.checkpoints, run.print)
        self._averages = average_paths(run.compiled.abstract_state)
        self._rows = Rows(self.context)
        self._callbacks: dict[str, Callback] = {"Rows 0": self._rows}
        for hook in run.experiment.hooks:
            # Named by kind and count, so that a resumed run may have further hooks.
            kind = type(hook).__name__
            count = sum(name.split()[0] == kind for name in self._callbacks)
            self._callbacks[f"{kind} {count}"] = hook.build(self.context)
        callbacks = self._callbacks.values()
        self._due = [each.due for each in callbacks if type(each).due is not Callback.due]

    def train(self) -> None:
        """Trains to the end.

        Raises:
          Interrupted: on SIGTERM or Ctrl-C, after saving.
        """
        with self.running() as step:
            self.finish(train_steps(self, step, self.run.steps))

    @contextlib.contextmanager
    def running(self) -> Iterator[int]:
        """Restores or initializes the state, and runs the hooks' `begin` and `close`.

        Yields:
          The step to continue from.
        """
        rows = None
        try:
            step, pending = self._restore()
            if jax.process_index() == 0:
                rows = MetricsLog(self._directory.metrics)
            self.context.attach(rows, list(self._callbacks.values()))
            for callback in self._callbacks.values():
                callback.begin()
            self.run.interruption.begin()
            if pending is not None:
                metrics = with_sums(self._abstract_metrics(), pending)
                self._deliver(step, metrics, self.run.state)
            yield step
        finally:
            self.context.attach(None, ())
            for callback in self._callbacks.values():
                callback.close()
            if rows is not None:
                rows.close()
            self._store.close()

    def next_execution(self, step: int, until: int) -> tuple[int, bool]:
        """Returns the number of steps of the next execution, and whether the state is due after it.

        Both depend on the step alone, so that a resumed run executes the same programs.
        """
        count = self.run.experiment.runtime.steps_per_execution
        if step % count or step + count > until:
            count = 1
        for at in range(step + 1, step + count + 1):
            if at == self.run.steps or any(due(at) for due in self._due):
                return (count, True) if at == step + count else (1, at == step + 1)
        return count, False

    def is_interrupted(self, step: int) -> bool:
        """Returns whether to end now; all processes agree on the step."""
        if jax.process_count() == 1:
            return self.run.interruption.requested
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)

    def notify(
        self, step: int, metrics: Packed, state: Any = None, interrupted: bool = False
    ) -> None:
        """Calls the hooks for each step of an execution, and saves where that is due.

        Args:
          step: the last step of the execution.
          metrics: of each of its steps.
          state: after the last one; None where no hook needs it.
          interrupted: save after the last one, and end the run.

        Raises:
          Interrupted: after saving, if `interrupted`, or if a signal cuts an evaluation short.
        """
        *earlier, last = metrics.unpack()
        for at, one in enumerate(earlier, start=step - len(earlier)):
            self._deliver(at, one)
        self._deliver(step, last, state, interrupted)

    def finish(self, step: int) -> None:
        """Scores every split, with the best weights where a hook kept them.

        Raises:
          Interrupted: a signal arrived while saving; everything is saved.
        """
        run, context = self.run, self.context
        run.interruption.end()
        self._store.wait()
        if context.stop_reason:
            run.print(f"stopped at step {step}: {context.stop_reason}")
        best = [each.best_step for each in self._callbacks.values() if each.best_step is not None]
        if best and best[0] != step:
            state, _ = self._store.restore(best[0], run.compiled.abstract_state)
            run.state = run.compiled.shard(state)
        running = {}
        if not run.evaluates_train:
            running = compute_row(with_sums(self._abstract_metrics(), self._rows.epoch_sums))
        result.write(run, step, self.clock.timing, running)

    def _restore(self) -> tuple[int, Json]:
        """Puts the newest intact checkpoint, or a fresh state, on the devices.

        Returns:
          The step reached, and the metrics of its event if the hooks did not handle it to the end.
        """
        run = self.run
        found = self._store.restore_latest(run.compiled.abstract_state)
        if found is None:
            if jax.process_index() == 0:
                self._directory.metrics.unlink(missing_ok=True)
            experiment = run.experiment
            given = initial_arrays(
                experiment.init_from, experiment.task, experiment.model, run.compiled.abstract_state
            )
            run.state = run.compiled.init(jax.random.key(experiment.seed))
            if given:
                run.state = run.compiled.shard(replace_arrays(run.gather_state(), given))
            return 0, None
        state, metadata = found
        run.state = run.compiled.shard(state)
        for name, callback in self._callbacks.items():
            if metadata.hooks.get(name) is not None:
                callback.restore(metadata.hooks[name])
        self.clock.restore(metadata)
        step, pending = metadata.step, metadata.pending
        if jax.process_index() == 0:
            truncate_rows(self._directory.metrics, step if pending is None else step - 1)
        # A run that a hook stopped continues if it is now to take more steps.
        same_length = metadata.total_steps == run.steps
        self.context.stop_reason = metadata.stop_reason if same_length else ""
        run.print(f"resuming from step {step} of {run.steps}")
        return step, pending

    def _deliver(
        self, step: int, metrics: Metrics, state: Any = None, interrupted: bool = False
    ) -> None:
        """Calls the hooks with one step, then saves if it is time to."""
        run, context, timing = self.run, self.context, self.clock.timing()
        event = Event(
            step=step,
            epoch=round(step * run.experiment.batch_size / run.examples, 6),
            metrics=metrics,
            gather=None if state is None else functools.partial(run.compiled.gather, state),
            timing={
                name: round(timing[name], 4)
                for name in ("seconds", "training_seconds", "compile_seconds")
            },
        )
        # A copy: callbacks may change what they returned.
        before: dict[str, Json] = {}
        if state is not None:
            before = {name: copy.deepcopy(each.state()) for name, each in self._callbacks.items()}
        try:
            for callback in self._callbacks.values():
                callback(event)
        except Interrupted:
            if run.interruption.repeated:
                raise
            # An evaluation was cut short: the resumed run delivers this event again, to hooks in
            # the state that they had before it.
            pending = {
                name: [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(metric)]
                for name, metric in metrics.items()
            }
            self._save_and_exit(step, before, pending)
        if state is None and (context.save_requested or context.stop_reason):
            raise UserError(
                f"a hook called save or stop at step {step}, for which its `due` returned False: "
                f"let `due` return True there"
            )
        if interrupted:
            self._save_and_exit(step)
        if context.save_requested or context.stop_reason or step == run.steps:
            self._save(step)

    def _save_and_exit(self, step: int, hooks: Json = None, pending: Json = None) -> NoReturn:
        """Saves unless the directory is temporary, and raises `Interrupted`."""
        self.run.interruption.acknowledge()
        if self.run.is_temporary:
            self.run.print(
                f"interrupted at step {step}; not saved: give a workdir, and a run can be resumed"
            )
            raise Interrupted
        self._save(step, hooks, pending)
        self._store.wait()
        self.run.print(f"interrupted; saved at step {step}: run the same command to resume")
        raise Interrupted

    def _save(self, step: int, hooks: Json = None, pending: Json = None) -> None:
        """Saves a checkpoint; `hooks` are the callbacks' states, None for their current ones."""
        run, context, callbacks = self.run, self.context, self._callbacks
        if hooks is None:
            hooks = {name: callback.state() for name, callback in callbacks.items()}
        best = [each.best_step for each in callbacks.values() if each.best_step is not None]
        if context.rows is not None:
            context.rows.sync()  # first: no checkpoint is ahead of the rows that it stands for
        metadata = CheckpointMetadata(
            step=step,
            total_steps=run.steps,
            hooks=hooks,
            pending=pending,
            best_step=best[0] if best else None,
            stop_reason=context.stop_reason,
            averages=self._averages,
            **self.clock.timing(),
        )
        keep = {*best, *(at for each in callbacks.values() for at in each.protected_steps)}
        self._store.save(run.compiled.gather(run.state), metadata, keep)
        if not context.save_in_background:
            self._store.wait()
        context.save_requested = False

    def _abstract_metrics(self) -> Metrics:
        """Returns the metrics of a training step without their values, for their classes."""
        run = self.run
        return jax.eval_shape(
            lambda state, batch: update(run.program, state, batch)[1],
            run.compiled.abstract_state,
            run.batch,
        )


class LoopContext:
    """The `RunContext` of a training loop.

    Args:
      run: the run that is trained.

    Attributes:
      steps_submitted: last step given to the devices, one or more ahead of a late event.
      rows: file that rows are written to; None before and after training, and where another
        process writes it.
      save_requested: whether a hook requested a checkpoint at this event.
      save_in_background: whether the loop trains on while it is written.
      stop_reason: why a hook ends the run; empty if none does.
    """

    def __init__(self, run: TrainingRun) -> None:
        self.experiment, self.workdir = run.experiment, run.workdir
        self.steps, self.steps_per_epoch, self.splits = run.steps, run.steps_per_epoch, run.splits
        self.evaluate, self.predict, self.sample = run.evaluate, run.predict, run.sample
        self.print, self.traces = run.print, run.traces
        self.higher_is_better = run.higher_is_better
        self.rows: MetricsLog | None = None
        self._callbacks: Sequence[Any] = ()
        self.steps_submitted = 0
        self.save_requested = False
        # On CPUs, writing would take the cores from training.
        self.save_in_background = jax.default_backend() != "cpu"
        self.stop_reason = ""

    def log(self, row: Mapping[str, Json]) -> None:
        """See `RunContext`."""
        if self.rows is not None:
            self.rows.append(row)
        for callback in self._callbacks:
            callback.row(row)

    def save(self, background: bool | None = None) -> None:
        """See `RunContext`."""
        self.save_requested = True
        if background is not None:
            self.save_in_background = background

    def stop(self, reason: str) -> None:
        """See `RunContext`."""
        self.stop_reason = self.stop_reason or reason

    def attach(self, rows: MetricsLog | None, callbacks: Sequence[Any]) -> None:
        """Sets the file and the callbacks that receive rows."""
        self.rows, self._callbacks = rows, callbacks


class Clock:
    """Accounts for the seconds of one run, those before it was resumed included.

    Args:
      compilations: traces and compile time of the run's compiled functions.

    Attributes:
      longest_execution: seconds of the longest pass of the training loop in this process.
    """

    def __init__(self, compilations: Compilations) -> None:
        # In training steps, without compiling; and the part of these spent waiting for input.
        self._seconds = {"training_seconds": 0.0, "input_seconds": 0.0}
        self._compilations, self._begun = compilations, time.perf_counter()
        self._earlier = self._compiled_earlier = self.longest_execution = 0.0

    def timing(self) -> dict[str, float]:
        """Returns the seconds until now, as `CheckpointMetadata` names them."""
        return {
            "seconds": self._earlier + time.perf_counter() - self._begun,
            **self._seconds,
            "compile_seconds": self._compiled_earlier + self._compilations.seconds,
        }

    @contextlib.contextmanager
    def measuring(self, name: Literal["training_seconds", "input_seconds"]) -> Iterator[None]:
        """Adds the time inside, without the part spent compiling."""
        begun, compiled = time.perf_counter(), self._compilations.seconds
        yield
        compiling = self._compilations.seconds - compiled
        seconds = time.perf_counter() - begun - compiling
        self._seconds[name] += seconds
        if name == "training_seconds":
            self.longest_execution = max(self.longest_execution, seconds)

    def restore(self, metadata: CheckpointMetadata) -> None:
        """Continues from the seconds of an earlier process."""
        self._earlier = metadata.seconds
        self._seconds["training_seconds"] = metadata.training_seconds
        self._seconds["input_seconds"] = metadata.input_seconds
        self._compiled_earlier = metadata.compile_seconds
