"""Samples during training."""

from dataclasses import dataclass

import jax

from jdl.errors import UserError
from jdl.files import RunDirectory
from jdl.hooks.base import Callback, Hook
from jdl.typing import Event, RunContext


@dataclass(frozen=True, kw_only=True)
class Sample(Hook):
    """Writes samples of the model into `RUN/samples`: a grid of images, texts, or sounds.

    They are what the task's `sample` returns and its `render` shows, always of the same random
    keys and the same examples. `jdl report` shows them in the order of training.
    """

    every: int | None = None  # steps between samples; None: one epoch. The last step has some, too
    count: int = 16  # number of samples
    seed: int = 0  # of their random keys
    split: str | None = None  # of a conditional model's examples; None: validation, or else train
    folder: str = "samples"  # in the run directory; another for each such hook

    def __post_init__(self) -> None:
        if self.every is not None and self.every < 1:
            raise UserError(f"Sample needs every >= 1 steps, not {self.every}")
        if self.count < 1:
            raise UserError(f"Sample needs count >= 1 samples, not {self.count}")

    def build(self, run: RunContext) -> Callback:
        """See `Hook.build`.

        Raises:
          UserError: there is no such split, it is the test split, or two hooks have one folder.
        """
        if self.split is not None and self.split not in run.splits:
            raise UserError(f"Sample: no split {self.split!r} (there are {', '.join(run.splits)})")
        same = [
            x for x in run.experiment.hooks if isinstance(x, Sample) and x.folder == self.folder
        ]
        if len(same) > 1:
            raise UserError(
                f"two hooks Sample write into the folder {self.folder!r}: give one another folder"
            )
        return _Sample(run, self, self.every or run.steps_per_epoch)


class _Sample(Callback):
    def __init__(self, run: RunContext, config: Sample, every: int) -> None:
        self._run, self._config, self._every = run, config, every

    def due(self, step: int) -> bool:
        return step % self._every == 0 or step == self._run.steps

    def __call__(self, event: Event) -> None:
        if not self.due(event.step):
            return
        config = self._config
        found = self._run.sample(config.count, jax.random.key(config.seed), split=config.split)
        if jax.process_index() == 0:
            folder = RunDirectory(self._run.workdir).samples(config.folder)
            folder.mkdir(exist_ok=True)
            found.write(folder / f"step-{event.step:09d}")
