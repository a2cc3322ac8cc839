"""The training loop of vectorized runs: one vmapped step of all, then the hooks of each."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from io import TextIOBase
from typing import Any

import jax

from jdl.sweeps.vectorized import VectorizedSteps
from jdl.trainer.interrupt import Interrupted, Interruption
from jdl.trainer.loop import TrainingLoop, train_steps


class Member:
    """A run of a vectorized group.

    Args:
      loop: the run's training loop.
      index: place of the run among those compiled together.
      output: file that its printed lines go to; None for standard output.
      on_end: called once when the run has ended, with its error if it failed; not if interrupted.

    Attributes:
      step: the step reached.
      active: whether the run has neither ended nor failed.
      due: whether its hooks need the state after the current execution.
      interrupted: whether it was saved because of a signal.
    """

    def __init__(
        self,
        loop: TrainingLoop,
        index: int,
        output: TextIOBase | None,
        on_end: Callable[[Exception | None], None],
    ) -> None:
        self.loop, self.run, self.index = loop, loop.run, index
        self._output, self._on_end = output, on_end
        self._context = contextlib.ExitStack()
        self.step, self.active, self.due, self.interrupted = 0, True, False, False

    @property
    def done(self) -> bool:
        """Whether the run took its last step, or a hook stopped it."""
        return self.step == self.run.steps or bool(self.loop.context.stop_reason)

    @contextlib.contextmanager
    def isolated(self) -> Iterator[None]:
        """Redirects printed lines to the run's output; an exception ends this run alone."""
        failure: Exception | None = None
        with redirect_output(self._output):
            try:
                yield
                return
            except Interrupted:
                self.interrupted = True
            except Exception as error:
                failure = error
            self.close()
        self.active = False
        if failure is not None:
            self._on_end(failure)

    def close(self) -> None:
        """Releases what the run holds; errors in doing so do not hide the one that ended it."""
        with contextlib.suppress(Exception):
            self._context.close()

    def start(self) -> None:
        """Restores or initializes the run."""
        with self.isolated():
            self.step = self._context.enter_context(self.loop.running())

    def train_alone(self, until: int) -> None:
        """Trains the run by itself until a step."""
        with self.isolated():
            self.step = train_steps(self.loop, self.step, until)

    def finish(self) -> None:
        """Saves and scores the run."""
        with self.isolated():
            self.loop.finish(self.step)
            self._context.close()
            self.active = False
        if not self.active and not self.interrupted:
            self._on_end(None)


def train_vectorized(
    members: Sequence[Member], compiled: VectorizedSteps, interruption: Interruption
) -> None:
    """Trains runs that were compiled together to their ends.

    Runs that were saved at an earlier step than the others first catch up by themselves. A run
    that ends or fails leaves the others; once half have left, the step is compiled for fewer.

    Args:
      members: the runs.
      compiled: their vmapped functions.
      interruption: shared by all runs.

    Raises:
      Interrupted: on SIGTERM or Ctrl-C, after saving all runs.
    """
    with contextlib.ExitStack() as stack:
        for member in members:
            stack.callback(member.close)
            member.start()
        _train(members, compiled, interruption)
    if any(member.interrupted for member in members):
        raise Interrupted


def _train(
    members: Sequence[Member], compiled: VectorizedSteps, interruption: Interruption
) -> None:
    latest = max((member.step for member in members if member.active), default=0)
    for member in members:
        if member.active:
            member.train_alone(latest)
        if member.active and member.done:
            member.finish()
    _train_stacked([m for m in members if m.active], compiled, interruption, latest)


def _train_stacked(
    members: Sequence[Member], compiled: VectorizedSteps, interruption: Interruption, step: int
) -> None:
    """The loop of `train_steps` over several runs at the same step."""
    stacked, stack, inputs, late = list(members), None, None, None
    while active := [member for member in stacked if member.active]:
        if stack is None or inputs is None or 2 * len(active) <= len(stacked):
            stacked = active
            states = [member.run.state for member in stacked]
            stack = compiled.stack([member.index for member in stacked], states)
            inputs = _inputs(stacked, step)
        upcoming = [member.loop.next_execution(step, member.run.steps) for member in active]
        count = min(upcoming)[0]
        for member, (own_count, own_due) in zip(active, upcoming, strict=True):
            member.due = own_due and own_count == count
        due = any(member.due for member in active)
        with contextlib.ExitStack() as clocks:
            for member in active:
                clocks.enter_context(member.loop.clock.measuring("training_seconds"))
            with contextlib.ExitStack() as waiting:
                for member in active:
                    waiting.enter_context(member.loop.clock.measuring("input_seconds"))
                step_inputs = [inputs() for _ in range(count)]
            metrics = stack.update(step_inputs)
            step += count
            interrupted = interruption.requested
            # As in `train_steps`: at most two executions are in flight.
            jax.block_until_ready(metrics if due or interrupted else late and late[1])
        interruption.expect(active[0].loop.clock.longest_execution)
        events = [late] if late else []
        late = (step, metrics)
        if due or interrupted:
            events, late = [*events, late], None
        for index, member in enumerate(stacked):
            if member.active:
                member.run.set_lazy_state(functools.partial(stack.state_of, index))
                _notify(member, index, step, events, interrupted)


def _notify(
    member: Member, index: int, step: int, events: Sequence[Any], interrupted: bool
) -> None:
    """Calls a run's hooks with its metrics; saves it if interrupted, finishes it if done."""
    member.step, loop = step, member.loop
    with member.isolated():
        loop.context.steps_submitted = step
        for at, metrics in events:
            now = at == step
            state = member.run.state if now and member.due else None
            own = metrics.replace(run=index)
            loop.notify(at, own, state=state, interrupted=interrupted and now)
    if member.active and member.done:
        member.finish()


def _inputs(members: Sequence[Member], step: int) -> Callable[[], Any]:
    """Returns a function that gives the next step input of every run, from a step on.

    Runs with the same seed read the same: then it gives one for all.
    """
    if len({member.run.experiment.seed for member in members}) == 1:
        return functools.partial(next, members[0].run.step_inputs(step))
    iterators = [member.run.step_inputs(step) for member in members]

    def read() -> list[Any]:
        found = [
            next(iterator) if member.active else None
            for member, iterator in zip(members, iterators, strict=True)
        ]
        some = next(each for each in found if each is not None)
        return [some if each is None else each for each in found]  # what is unused may be anything

    return read


def redirect_output(output: TextIOBase | None) -> contextlib.AbstractContextManager[Any]:
    """Redirects standard output to a file, if there is one."""
    return contextlib.redirect_stdout(output) if output else contextlib.nullcontext()
