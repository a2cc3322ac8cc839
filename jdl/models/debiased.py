"""A classifier beside an adversary, for `AdversarialClassification`."""

import flax.linen as nn
import jax

from jdl.models.mlp import MLP


class Debiased(nn.Module):
    """A classifier, and a multilayer perceptron that guesses the group from its output.

    Maps what the classifier maps to its logits (batch, classes).
    """

    predictor: nn.Module  # the classifier; its `__call__` takes `train`
    num_groups: int = 2  # groups to guess
    widths: tuple[int, ...] = (32,)  # hidden units of the adversary

    def setup(self) -> None:
        """Creates the adversary."""
        self.adversary = MLP(widths=self.widths, features=self.num_groups)

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Applies the classifier."""
        return self.predictor(x, train=train)

    def judge(self, seen: jax.Array) -> jax.Array:
        """Returns the adversary's logits of the groups, (batch, groups)."""
        return self.adversary(seen)
