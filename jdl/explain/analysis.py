"""Analyses of a run by name: what it learned, from which examples, and what would change it."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """An analysis of a run beside attributions, with its options."""


@dataclass(frozen=True, kw_only=True)
class Filters(Analysis):
    """The kernels of the first convolution."""


@dataclass(frozen=True, kw_only=True)
class TopExamples(Analysis):
    """The examples of a split on which channels of a layer are strongest."""

    layer: str | None = None  # path of a module; None: the last with several pixels
    channels: tuple[int, ...] = ()  # their numbers; (): the first eight
    examples: int = 512  # of the split, among which they are looked for


@dataclass(frozen=True, kw_only=True)
class ActivationMaximization(Analysis):
    """Inputs that excite channels of a layer."""

    layer: str | None = None  # path of a module; None: the last with several pixels
    channels: tuple[int, ...] = ()  # their numbers; (): the first eight
    steps: int = 128  # of the ascent


@dataclass(frozen=True, kw_only=True)
class PermutationImportance(Analysis):
    """How much worse a metric is where a column of a table is permuted."""

    metric: str | None = None  # of the task; None: accuracy, or the loss where there is none
    repeats: int = 5  # permutations of each column
    examples: int = 2000  # of the split


@dataclass(frozen=True, kw_only=True)
class PartialDependence(Analysis):
    """The mean target where a column of a table has each of some values."""

    columns: tuple[str, ...] = ()  # their names; (): the first six
    examples: int = 200  # of the split


@dataclass(frozen=True, kw_only=True)
class TracIn(Analysis):
    """The influence of training examples, by a run's checkpoints."""

    examples: int = 4096  # of the training split
    modules: tuple[str, ...] = ()  # paths whose parameters count; (): the last module's
    of_rows: bool = True  # on the examples that are explained; False: on themselves alone
    marked: str | None = None
    """Name of an array of the training examples, 0 or 1, such as whether a label is wrong: how well
    self-influence and the loss rank those of 1 is printed."""


@dataclass(frozen=True, kw_only=True)
class NearestExamples(Analysis):
    """The training examples whose outputs of a layer are nearest."""

    layer: str | None = None  # path of a module; None: the last before the outputs
    examples: int = 4096  # of the training split


@dataclass(frozen=True, kw_only=True)
class ConceptActivation(Analysis):
    """Whether the target depends on a concept, that a folder of examples shows (TCAV)."""

    concept: str  # folder of files with the concept
    layer: str | None = None  # path of a module; None: the last with several pixels
    examples: int = 256  # random training examples, from which it is told


@dataclass(frozen=True, kw_only=True)
class Counterfactual(Analysis):
    """The fewest features whose change to a training example's values changes the class."""

    wanted: str | None = None  # class to reach; None: any other
    examples: int = 1024  # of the training split
