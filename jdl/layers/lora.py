"""Low-rank adaptation (LoRA): fine-tunes small factors beside frozen kernels (Hu et al., 2022)."""

import fnmatch
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from jdl.errors import UserError, nearest
from jdl.paths import within
from jdl.typing import PyTree

A, B = "lora_a", "lora_b"
"""Names of the factors, beside the `kernel` that they change."""


class LoRA(nn.Module):
    """A model whose dense layers, chosen by path, learn a change of low rank.

    The output of a layer with kernel W is x W + alpha / rank * x A B. A is random, B is zero at
    first, so that training begins at the model as it is. Parameters have the paths that they have
    in the model alone, with `lora_a` (inputs, rank) and `lora_b` (rank, features) beside a kernel;
    `init_from` reads weights as for that model. All others are frozen, in an `Experiment` of this
    model, but for those of `trained`. Exports and `jdl.pretrained.save` merge the factors.

    It has the fields of its model, and is called like it; methods of other names cannot be adapted.
    """

    model: nn.Module  # to fine-tune; a Flax module with the one method `__call__`
    modules: tuple[str, ...] = ("*.qkv", "*.attention.output")
    """Paths of dense layers, such as block_0.attention.qkv; * stands for any characters."""
    rank: int = 8  # of the change
    alpha: float = 16.0  # the change is scaled by alpha / rank
    trained: tuple[str, ...] = ("logits",)  # paths of modules that are trained as a whole

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"model.rank must be at least 1, not {self.rank}")
        super().__post_init__()

    @nn.nowrap
    def __getattr__(self, name: str) -> Any:
        fields = getattr(type(self.__dict__.get("model")), "__dataclass_fields__", {})
        if name in fields and not name.startswith("_"):
            return getattr(self.__dict__["model"], name)
        return super().__getattr__(name)

    @nn.nowrap
    def clone(self, **updates: Any) -> "LoRA":
        """Returns a copy with other fields, of this module or of its model."""
        own = {"parent", "_deep_clone", "_reset_names", *type(self).__dataclass_fields__}
        inner = {name: updates.pop(name) for name in list(updates) if name not in own}
        if inner:
            updates["model"] = updates.get("model", self.model).clone(**inner)
        return super().clone(**updates)

    @property
    def wrapped_model(self) -> nn.Module:
        """The model, whose signature this one has."""
        return self.model

    def setup(self) -> None:
        """Gives the parameters the paths of the model alone."""
        nn.share_scope(self, self.model)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Applies the model.

        Raises:
          UserError: one of `modules` is no dense layer of the model.
        """
        layers: set[str] = set()

        def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            module, path = context.module, ".".join(context.module.path)
            if not isinstance(module, nn.Dense) or context.method_name != "__call__":
                return call(*args, **kwargs)
            layers.add(path)
            y = call(*args, **kwargs)
            return y + self._change(module, args[0], y.dtype) if self._is_adapted(path) else y

        with nn.intercept_methods(intercept):
            found = self.model(*args, **kwargs)
        if self.is_initializing():
            self._check(layers)
        return found

    @nn.nowrap
    def _change(self, dense: nn.Dense, x: jax.Array, dtype: Any) -> jax.Array:
        init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        a = dense.param(A, init, (x.shape[-1], self.rank))
        b = dense.param(B, nn.initializers.zeros, (self.rank, dense.features))
        return self.alpha / self.rank * (x.astype(dtype) @ a.astype(dtype)) @ b.astype(dtype)

    @nn.nowrap
    def _is_adapted(self, path: str) -> bool:
        return any(fnmatch.fnmatchcase(path, pattern) for pattern in self.modules)

    @nn.nowrap
    def _check(self, layers: set[str]) -> None:
        for pattern in self.modules:
            if not fnmatch.filter(layers, pattern):
                known = ", ".join(sorted(layers)) or "none"
                raise UserError(
                    f"model.modules: the model has no dense layer {pattern!r} (it has {known})"
                    f"{nearest(pattern, layers)}"
                )

    @nn.nowrap
    def is_frozen(self, path: str) -> bool:
        """Whether the parameter at a path stays as it is."""
        return path.rpartition(".")[2] not in (A, B) and not within(path, self.trained)


def merge_lora(model: nn.Module, params: PyTree) -> tuple[nn.Module, PyTree]:
    """Adds the changes of a `LoRA` to the kernels.

    Args:
      model: a `LoRA`; any other is returned as it is.
      params: its parameters.

    Returns:
      The model without LoRA, and its parameters.
    """
    if not isinstance(model, LoRA):
        return model, params
    flat: dict[Any, Any] = dict(flatten_dict(params))
    merged = {path: x for path, x in flat.items() if path[-1] not in (A, B)}
    for path, a in flat.items():
        if path[-1] == A:
            # Of a model with `scan`, kernels are stacked along axis 0.
            change = jnp.matmul(a, flat[(*path[:-1], B)], precision=jax.lax.Precision.HIGHEST)
            kernel = merged[(*path[:-1], "kernel")]
            merged[(*path[:-1], "kernel")] = kernel + model.alpha / model.rank * change
    return model.model, unflatten_dict(merged)
