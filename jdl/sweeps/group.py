"""Runs that are stepped together, each of them as if it were alone."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from io import StringIO, TextIOBase
from typing import Any

import jax

from jdl.metrics import Packed
from jdl.sweeps.vectorized import Stack, Vectorized
from jdl.trainer.interrupt import Interrupted, Interruption
from jdl.trainer.loop import Dispatch, Loop, dispatched


class Member:
    """A run of a group.

    Args:
      loop: takes it to its end.
      index: its place among those that were compiled together.
      output: where its lines go; None: where they always do.
      ended: told when it has ended, of the error that it ended with, if any; not where it was
        interrupted.

    Attributes:
      wanted: what its loop wants next; None once it has ended.
      interrupted: whether it has saved since it was asked to end.
    """

    def __init__(
        self,
        loop: Loop,
        index: int,
        output: TextIOBase | None,
        ended: Callable[[Exception | None], None],
    ) -> None:
        self.run, self.index, self._output, self._ended = loop.run, index, output, ended
        self.going = loop.dispatches()
        self.wanted: Dispatch | None = None
        self.interrupted = False
        self._feeds: Iterator[Any] | None = None

    def answer(self, answer: tuple[Packed, float] | None) -> None:
        """Tells the loop what came of what it wanted; it goes on to the next."""
        self.wanted, failure = None, None
        with speaking(self._output):
            try:
                self.wanted = self.going.send(answer)
            except StopIteration:
                pass
            except Interrupted:
                self.interrupted = True
            except Exception as error:
                failure = error
        if self.wanted is None and not self.interrupted:
            self._ended(failure)

    def alone(self) -> None:
        """Takes the steps that are wanted without the others."""
        assert self.wanted is not None
        self._feeds = self._feeds or self.run.step_inputs(self.wanted.step)
        self.answer(dispatched(self.run, self._feeds, self.wanted.count))

    def joined(self, fetch: Callable[[], Any]) -> None:
        """From here on its state lies with the others'."""
        self._feeds = None
        self.run.lies_elsewhere(fetch)


class Group:
    """Takes runs that were compiled together to their ends.

    Those that stand at the same step go on together; others are brought there first, one by one. A
    run that ends early leaves the rest; once half have left, the steps are compiled for fewer.

    Args:
      members: the runs.
      compiled: their functions.
      interruption: that of all the runs.
    """

    def __init__(
        self,
        members: Sequence[Member],
        compiled: Vectorized,
        interruption: Interruption,
    ) -> None:
        self._members, self._compiled, self._interruption = members, compiled, interruption
        self._alike = len({member.run.experiment.seed for member in members}) == 1
        self._stack: Stack | None = None
        self._stacked: list[Member] = []
        self._feeds: list[Iterator[Any]] = []
        self._before: Packed | None = None

    def go(self) -> None:
        """Begins or goes on, trains and finishes all of them.

        Raises:
          Interrupted: after saving.
        """
        with contextlib.ExitStack() as stack:
            for member in self._members:
                stack.enter_context(contextlib.closing(member.going))
            for member in self._members:
                member.answer(None)
            while waiting := [member for member in self._members if member.wanted]:
                self._round(waiting)
        if any(member.interrupted for member in self._members):
            raise Interrupted

    def _round(self, waiting: list[Member]) -> None:
        if self._interruption.requested:
            for member in waiting:
                member.answer(None)
            return
        wanted = [member.wanted for member in waiting if member.wanted]
        step, count = max((each.step, each.count) for each in wanted)
        behind = [
            member
            for member, each in zip(waiting, wanted, strict=True)
            if (each.step, each.count) != (step, count)
        ]
        if not behind and len(waiting) > 1:
            self._together(waiting, step, count, any(each.due for each in wanted))
            return
        self._part(waiting)
        (member, *_) = behind or waiting
        member.alone()

    def _together(self, members: list[Member], step: int, count: int, due: bool) -> None:
        """Takes steps of all members in one call."""
        if not set(members) <= set(self._stacked) or 2 * len(members) <= len(self._stacked):
            self._join(members, step)
        assert self._stack is not None
        begun, traced = time.perf_counter(), sum(self._compiled.traces.values())
        fed = [self._fed() for _ in range(count)]
        read = time.perf_counter()
        metrics = self._stack.dispatch(fed)
        compiled = sum(self._compiled.traces.values()) > traced
        compiling = time.perf_counter() - read if compiled else 0.0
        # Here, so that none of the runs waits for all. Two steps are in flight, as in a run alone.
        jax.block_until_ready(metrics if due else self._before)
        self._before = metrics
        seconds = time.perf_counter() - begun - compiling
        for place, member in enumerate(self._stacked):
            if member in members:
                member.run.input_seconds += read - begun
                member.run.compile_seconds += compiling
                member.joined(functools.partial(self._stack.part, place))
                member.answer((dataclasses.replace(metrics, run=place), seconds))

    def _fed(self) -> Any:
        """What the runs are fed in a step; what those that have left are fed does not matter."""
        if self._alike:
            return next(self._feeds[0])
        step_inputs = zip(self._stacked, self._feeds, strict=True)
        found = {member: next(step_input) for member, step_input in step_inputs if member.wanted}
        some = next(iter(found.values()))
        return [found.get(member, some) for member in self._stacked]

    def _join(self, members: list[Member], step: int) -> None:
        """Stacks the states of these members, wherever they lie."""
        states = [member.run.state for member in members]
        indices = [member.index for member in members]
        self._stack = self._compiled.stack(indices, states, self._alike)
        self._stacked, self._before = members, None
        leaders = members[:1] if self._alike else members
        self._feeds = [member.run.step_inputs(step) for member in leaders]
        for place, member in enumerate(members):
            member.joined(functools.partial(self._stack.part, place))

    def _part(self, members: list[Member]) -> None:
        """Gives each member its own state back."""
        for member in members:
            assert member.run.state is not None
        self._stack, self._stacked, self._feeds = None, [], []


def speaking(output: TextIOBase | None) -> contextlib.AbstractContextManager[Any]:
    """Lines of a run go to its own output, where it has one."""
    return contextlib.redirect_stdout(output) if output else contextlib.nullcontext()


def outputs(given: Sequence[TextIOBase | None]) -> list[TextIOBase | None]:
    """Where the lines of runs go; of those that are given no output, the first's are shown."""
    shown = next((index for index, each in enumerate(given) if each is None), None)
    return [
        StringIO() if each is None and index != shown else each for index, each in enumerate(given)
    ]
