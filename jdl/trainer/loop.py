"""The one loop: next batch, place, update, hooks, wait for the step before."""

import contextlib
import json
import math
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import jax

from jdl.checkpoint import CheckpointStore
from jdl.errors import UserError
from jdl.files import (
    CheckpointMetadata,
    MetricsLog,
    RunDirectory,
    truncate_rows,
    write_json,
    write_lines,
)
from jdl.hooks import Checkpoint, Listener
from jdl.hooks.rows import Rows
from jdl.metrics import Metrics, Packed
from jdl.pretrained import replace_arrays
from jdl.step import update
from jdl.trainer import record
from jdl.trainer.interrupt import Interrupted
from jdl.trainer.run import Run
from jdl.typing import Event, Json


@dataclass(frozen=True)
class Dispatch:
    """What a loop wants next: `count` steps after `step`; `due` where the state is looked at then.

    It is answered by their metrics and the seconds that giving the devices their work took, without
    those of compiling; or by None where nothing was done, since the run was asked to end.
    """

    step: int
    count: int
    due: bool


Dispatches = Generator[Dispatch, tuple[Packed, float] | None, None]


def dispatched(run: Run, step_inputs: Iterator[Any], count: int) -> tuple[Packed, float]:
    """Has a run take its next `count` steps; answers a `Dispatch`."""
    begun, compiled = time.perf_counter(), run.compile_seconds
    metrics = run.dispatch(step_inputs, count)
    return metrics, time.perf_counter() - begun - (run.compile_seconds - compiled)


class Loop:
    """Takes one run from where it stands to its end.

    Args:
      run: a run that was prepared and has no state yet.
    """

    def __init__(self, run: Run) -> None:
        self._run, self._experiment = run, run.experiment
        self._directory = RunDirectory(run.workdir)
        self._store = CheckpointStore(self._directory.checkpoints, run.print)
        self._rows = Rows(run)
        self._listeners: dict[str, Listener] = {"Rows 0": self._rows}
        for hook in run.experiment.hooks:
            # Named by kind and count, so that hooks may be added between runs.
            kind = type(hook).__name__
            count = sum(name.split()[0] == kind for name in self._listeners)
            self._listeners[f"{kind} {count}"] = hook.build(run)
        self._log: MetricsLog | None = None
        self._begun = time.perf_counter()
        self._seconds = self._training = 0.0
        self._saved: int | None = None

    @property
    def run(self) -> Run:
        """The run that is taken to its end."""
        return self._run

    def go(self) -> None:
        """Restores or begins, trains, and finishes."""
        run = self._run
        with contextlib.closing(self.dispatches()) as going:
            wanted, step_inputs = next(going, None), None
            while wanted is not None:
                step_inputs = step_inputs or run.step_inputs(wanted.step)
                try:
                    wanted = going.send(dispatched(run, step_inputs, wanted.count))
                except StopIteration:
                    wanted = None

    def dispatches(self) -> Dispatches:
        """As `go`, for whoever has the steps taken: gives what is to be done next."""
        run = self._run
        try:
            step, pending = self._restore()
            if jax.process_index() == 0:
                self._log = MetricsLog(self._directory.metrics)
            run.attach(self._log, list(self._listeners.values()))
            for listener in self._listeners.values():
                listener.begin()
            run.interruption.begin()
            if pending is not None:
                self._deliver(step, self._metrics(pending), run.state)
            step = yield from self._train(step)
            if self._saved != step:
                self._save(step, self._states())
            run.interruption.end()
            self._store.wait()
            self._finish(step)
        finally:
            run.attach(None, [])
            for listener in self._listeners.values():
                listener.close()
            if self._log:
                self._log.close()
            self._store.close()

    def _restore(self) -> tuple[int, Json]:
        """Lays the newest whole checkpoint, or a fresh state, on the devices.

        Returns:
          The step reached, and the metrics of its event where the hooks have yet to see it.
        """
        run = self._run
        found = self._store.restore_latest(run.compiled.abstract_state)
        if found is None:
            if jax.process_index() == 0:
                self._directory.metrics.unlink(missing_ok=True)
            given = self._experiment.init_from.read(
                run.compiled.abstract_state, self._experiment.model
            )
            run.state = run.timed(run.compiled.init, jax.random.key(self._experiment.seed))
            if given:
                run.state = run.compiled.shard(replace_arrays(run.gather_state(), given))
            return 0, None
        state, meta = found
        run.state = run.compiled.shard(state)
        for name, listener in self._listeners.items():
            if meta.hooks.get(name) is not None:
                listener.restore(meta.hooks[name])
        self._seconds, self._training = meta.seconds, meta.training_seconds
        run.input_seconds, run.compile_seconds = meta.input_seconds, meta.compile_seconds
        step, pending = meta.step, meta.pending
        if jax.process_index() == 0:
            truncate_rows(self._directory.metrics, step if pending is None else step - 1)
        run.stop_reason = meta.stop_reason if meta.total_steps == run.steps else ""
        self._saved = step if pending is None else None
        run.print(f"going on from step {step} of {run.steps}")
        return step, pending

    def _train(self, step: int) -> Generator[Dispatch, tuple[Packed, float] | None, int]:
        """Steps until the end or a hook stops it; returns the step reached."""
        run = self._run
        waiting: tuple[int, int, Packed] | None = None
        while step < run.steps and not run.stop_reason:
            count = self._dispatched(step)
            due = self._due(step + count)
            answer = yield Dispatch(step, count, due)
            begun, compiled = time.perf_counter(), run.compile_seconds
            if answer is None:
                if waiting:
                    self._tell(*waiting)
                self._leave(step)
            metrics, spent = answer
            step += count
            run.dispatched = step
            if waiting:
                # Its metrics are there once the step before this one is done: at most two steps
                # are in flight, and reading them never leaves the device idle.
                self._tell(*waiting)
            waiting = (step, count, metrics)
            asked = self._asked(step)
            if due or asked:
                jax.block_until_ready(metrics)
            compiling = run.compile_seconds - compiled
            self._training += spent + time.perf_counter() - begun - compiling
            if due or asked:
                self._tell(*waiting, state=run.state if due else None)
                waiting = None
            if asked:
                self._leave(step)
        if waiting:
            self._tell(*waiting)
        return step

    def _leave(self, step: int) -> NoReturn:
        """Saves, and raises `Interrupted`."""
        run = self._run
        run.interruption.acknowledge()
        if self._saved != step:
            self._save(step, self._states())
        self._store.wait()
        run.print(f"interrupted; saved at step {step}: the same command goes on from there")
        raise Interrupted

    def _dispatched(self, step: int) -> int:
        """How many steps to dispatch at once; a function of the step alone, for exact resume."""
        count, end = self._experiment.steps_per_dispatch, self._run.steps
        aligned = step % count == 0 and step + count <= end
        free = not any(self._due(between) for between in range(step + 1, step + count))
        return count if aligned and free else 1

    def _due(self, step: int) -> bool:
        last = step == self._run.steps
        return last or any(listener.due(step) for listener in self._listeners.values())

    def _asked(self, step: int) -> bool:
        """Whether to end now; with several processes, all of them at the same step."""
        if jax.process_count() == 1:
            return self._run.interruption.requested
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)

    def _tell(self, step: int, count: int, metrics: Packed, state: Any = None) -> None:
        """Delivers the events of one dispatch; the state goes with the last."""
        for at, one in enumerate(metrics.unpack(), start=step - count + 1):
            self._deliver(at, one, state if at == step else None)

    def _deliver(self, step: int, metrics: Metrics, state: Any) -> None:
        run = self._run
        event = Event(
            step=step,
            epoch=round(step * self._experiment.batch_size / run.data.count("train"), 6),
            metrics=metrics,
            state=state,
            timing={
                "seconds": round(self._seconds + time.perf_counter() - self._begun, 4),
                "training_seconds": round(self._training, 4),
                "compile_seconds": round(run.compile_seconds, 4),
            },
        )
        before = self._states() if state is not None else {}
        try:
            for listener in self._listeners.values():
                listener(event)
        except Interrupted:
            if run.interruption.repeated:
                raise
            # An evaluation was cut short: the resumed run delivers this event again.
            run.interruption.acknowledge()
            pending = {k: [float(m.total), float(m.count)] for k, m in metrics.items()}
            self._save(step, before, pending)
            self._store.wait()
            run.print(f"interrupted; saved at step {step}: the same command goes on from there")
            raise
        if state is None and (run.save_asked or run.stop_reason):
            raise UserError(
                f"a hook asked to save or to stop at step {step}, where its `due` did not say so"
            )
        if run.save_asked:
            run.save_asked = False
            self._save(step, self._states())

    def _states(self) -> dict[str, Json]:
        states = {name: listener.state() for name, listener in self._listeners.items()}
        return json.loads(json.dumps(states))  # a copy: what a listener gave may change later

    def _save(self, step: int, hooks: Json, pending: Json = None) -> None:
        run = self._run
        if self._log:
            self._log.sync()
        metadata = CheckpointMetadata(
            step=step,
            total_steps=run.steps,
            hooks=hooks,
            pending=pending,
            best_step=self._best_step(),
            stop_reason=run.stop_reason,
            seconds=self._seconds + time.perf_counter() - self._begun,
            training_seconds=self._training,
            input_seconds=run.input_seconds,
            compile_seconds=run.compile_seconds,
        )
        protected = (listener.protected_steps() for listener in self._listeners.values())
        self._store.save(run.gather_state(), metadata, set().union(*protected))
        self._saved = step if pending is None else None
        if not self._asynchronous():
            self._store.wait()

    def _asynchronous(self) -> bool:
        """Whether saves overlap training: where the device is not the host, unless a hook says."""
        for hook in self._experiment.hooks:
            if isinstance(hook, Checkpoint) and hook.asynchronous is not None:
                return hook.asynchronous
        return jax.default_backend() != "cpu"

    def _best_step(self) -> int | None:
        steps = [listener.best_step() for listener in self._listeners.values()]
        return next((step for step in steps if step is not None), None)

    def _metrics(self, pending: Mapping[str, list[float]]) -> Metrics:
        """Metrics of a step from their sums; their classes are those that the step gives."""
        run = self._run
        abstract_state = jax.eval_shape(
            lambda state, batch: update(run.program, state, batch)[1],
            run.compiled.abstract_state,
            run.batch,
        )
        # JSON holds null in place of a sum that is not finite.
        numbers = {k: [math.nan if x is None else x for x in pair] for k, pair in pending.items()}
        return {
            k: abstract_state[k].replace(total=total, count=n) for k, (total, n) in numbers.items()
        }

    def _finish(self, step: int) -> None:
        """Scores every split once, with the weights that the run ends with."""
        run, best = self._run, self._best_step()
        if run.stop_reason:
            run.print(f"stopped at step {step}: {run.stop_reason}")
        if best not in (None, step):
            run.state = run.compiled.shard(
                self._store.restore(best, run.compiled.abstract_state)[0]
            )
        order = ("train", "validation", "test")
        metrics: dict[str, Json] = {}
        signatures: dict[str, str] = {}
        for split in (name for name in order if name in run.data.names):
            if split == "train" and not run.evaluates_train:
                metrics[split] = self._rows.epoch_metrics
                continue
            metrics[split], host_metrics = run.score(split)
            if host_metrics is not None:
                signatures |= host_metrics.signatures
                write_lines(self._directory.predictions(split), host_metrics.lines)
        speed = step * self._experiment.batch_size / self._training if self._training else 0.0
        device = jax.devices()[0]
        params = run.evaluation_state(run.gather_state()).params
        run.result = {
            "experiment": run.name,
            "step": step,
            "metrics": metrics,
            "train_metrics": "evaluated" if run.evaluates_train else "running",
            **({"signatures": signatures} if signatures else {}),
            "params_sha256": record.params_sha256(params),
            "seconds": round(self._seconds + time.perf_counter() - self._begun, 3),
            "compile_seconds": round(run.compile_seconds, 3),
            "input_seconds": round(run.input_seconds, 3),
            "items_per_second": round(speed, 1),
            "traces": dict(run.traces),
            "peak_bytes": record.peak_bytes(self._experiment.strategy.used()),
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
            "device": f"{len(self._experiment.strategy.used())} x {device.device_kind}",
            "versions": record.versions(),
        }
        if jax.process_index() == 0:
            write_json(self._directory.result, run.result)
