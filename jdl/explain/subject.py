"""What is explained: a scalar of a model as a pure function of its inputs."""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jdl.errors import UserError, nearest
from jdl.explain.targets import PREFIX, Loss, Target
from jdl.state import TrainState
from jdl.tasks import (
    Embedding,
    FixMatch,
    LanguageModeling,
    MaskedAutoencoding,
    MaskedLanguageModeling,
    Task,
    Translation,
)
from jdl.tasks.forward import forward
from jdl.tracing import errors_of
from jdl.typing import Batch, PyTree

Array = jax.Array

Inputs = dict[str, Any]
"""Inputs of a model by name, (rows, ...) floats: as they are, or embedded."""

Rows = dict[str, Any]
"""What else a scalar is computed of, (rows, ...) each: `batch`, and `target` from `resolve`."""


class Subject:
    """A scalar of a model as a pure function of its real inputs.

    Inputs of integers are explained at their embedding: at the output of the first
    `flax.linen.Embed`, or of the first method `embed` of a module, that looks them up. Integers
    that none looks up, such as the bytes of an image, are read as real numbers where that gives the
    same outputs. Masks, inputs of bool, are not explained. Of an input that a task sees several
    views of, one is explained: they are equal.

    Attributes:
      task, model: of the run.
      params: of the model.
      embedded: number of the lookup of each input that is explained at its embedding.
    """

    def __init__(
        self, task: Task, model: nn.Module, state: TrainState, target: Target, batch: Batch
    ) -> None:
        """Looks for embeddings.

        Args:
          task: of the model.
          model: a Flax module, applied in evaluation mode.
          state: its variables.
          target: the scalar.
          batch: some rows after the device transforms, with `mask`.

        Raises:
          UserError: an input is of integers that have no embedding.
        """
        self.task, self.model, self.params, self.target = task, model, state.params, target
        self.state = state
        self._names = [n for n in task.input_names if jnp.asarray(batch[n]).dtype != bool]
        self.embedded = self._find_embeddings(batch)

    def inputs(self, batch: Batch) -> Inputs:
        """Returns the inputs of rows that are explained, as float32 NumPy arrays."""
        given = {name: np.asarray(batch[name], np.float32) for name in self._read}
        found: Inputs = {n: x[:, 0] if self._has_views else x for n, x in given.items()}
        if self.embedded:
            found |= jax.tree.map(np.asarray, self._embed(self.params, dict(batch)))
        return {name: found[name] for name in self._names}

    def batch(self, x: Inputs, rows: Rows) -> Batch:
        """Returns the rows with inputs that are not embedded in place of theirs."""
        given = {name: x[name] for name in self._read}
        if self._has_views:
            shapes = {name: rows["batch"][name].shape for name in given}
            given = {n: jnp.broadcast_to(v[:, None], shapes[n]) for n, v in given.items()}
        return {**rows["batch"], **given}

    @property
    def _read(self) -> list[str]:
        """Names of the inputs that are read as real numbers."""
        return [name for name in self._names if name not in self.embedded]

    @property
    def _has_views(self) -> bool:
        """Whether each input is (rows, views, ...)."""
        return isinstance(self.task, (Embedding, FixMatch))

    def score(
        self, params: PyTree, x: Inputs, rows: Rows, deltas: Mapping[str, Array] | None = None
    ) -> Array:
        """Returns the scalar of each row, (rows,) float32.

        Args:
          params: of the model.
          x: inputs that are explained.
          rows: the other arrays of the rows.
          deltas: by path of a module, what is added to its output.
        """
        return self._score(params, x, rows, deltas)[0]

    @functools.cached_property
    def value(self) -> Callable[[PyTree, Inputs, Rows], Array]:
        """The compiled `score`."""
        return jax.jit(self.score)

    @functools.cached_property
    def gradient(self) -> Callable[[PyTree, Inputs, Rows], tuple[Array, Inputs]]:
        """The compiled scalar of each row and its gradient in the inputs."""
        return jax.jit(self.value_and_gradient)

    def value_and_gradient(self, params: PyTree, x: Inputs, rows: Rows) -> tuple[Array, Inputs]:
        """Returns the scalar of each row and its gradient in the inputs of that row."""

        def total(x: Inputs) -> tuple[Array, Array]:
            scores = self.score(params, x, rows)
            return scores.sum(), scores

        name = type(self.model).__name__
        with errors_of(
            f"{name} cannot be differentiated in its input, so explain it with a method that only "
            f"evaluates it (--method occlusion, lime, kernel_shap or shapley_sampling)"
        ):
            gradient, scores = jax.grad(total, has_aux=True)(x)
        return scores, gradient

    @functools.cached_property
    def layer_gradient(self) -> Callable[..., tuple[Array, dict[str, Array], dict[str, Array]]]:
        """The compiled `value_and_layer_gradient`; the paths are static."""
        return jax.jit(self.value_and_layer_gradient, static_argnums=3)

    def value_and_layer_gradient(
        self, params: PyTree, x: Inputs, rows: Rows, paths: tuple[str, ...]
    ) -> tuple[Array, dict[str, Array], dict[str, Array]]:
        """Returns the scalars, and outputs and gradients of modules by path, (rows, ...) each.

        Raises:
          UserError: a module is inside of a scan.
        """
        shapes = {path: leaf for path, leaf in self.layers(x, rows) if path in paths}
        zeros = {path: jnp.zeros(leaf.shape, leaf.dtype) for path, leaf in shapes.items()}

        def total(deltas: Mapping[str, Array]) -> tuple[Array, Any]:
            scores, outputs = self._score(params, x, rows, deltas, paths)
            return scores.sum(), (scores, outputs)

        gradients, (scores, outputs) = jax.grad(total, has_aux=True)(zeros)
        _check_read(paths, outputs)
        return scores, outputs, gradients

    def activations(
        self, params: PyTree, x: Inputs, rows: Rows, paths: Sequence[str]
    ) -> dict[str, Array]:
        """Returns the outputs of modules by path, (rows, ...) each.

        Raises:
          UserError: a module is inside of a scan.
        """
        _, outputs = self._score(params, x, rows, None, paths)
        _check_read(paths, outputs)
        return outputs

    def layers(self, x: Inputs, rows: Rows) -> list[tuple[str, jax.ShapeDtypeStruct]]:
        """Returns path and shape of each module's output that is one array, in order of calls."""
        found: dict[str, jax.ShapeDtypeStruct] = {}

        def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            output = call(*args, **kwargs)
            path = ".".join(context.module.path)
            if path and context.method_name == "__call__" and hasattr(output, "dtype"):
                found.pop(path, None)  # of a module that is called twice the last call
                found[path] = jax.ShapeDtypeStruct(output.shape, output.dtype)
            return output

        def trace(x: Inputs, rows: Rows) -> Array:
            with nn.intercept_methods(intercept):
                return self.score(self.params, x, rows)

        jax.eval_shape(trace, x, rows)
        return list(found.items())

    def layer(self, name: str, x: Inputs, rows: Rows) -> tuple[str, jax.ShapeDtypeStruct]:
        """Returns path and output shape of a module.

        Raises:
          UserError: there is none of this path; suggests the nearest.
        """
        known = dict(self.layers(x, rows))
        if name not in known:
            few = ", ".join(known)
            raise UserError(f"the model has no layer {name!r} (it has {few}){nearest(name, known)}")
        return name, known[name]

    def outputs(
        self,
        params: PyTree,
        batch: Batch,
        capture: Sequence[str] = (),
        collect: Sequence[str] = (),
    ) -> tuple[Any, dict[str, Any]]:
        """Returns the model's outputs and collections; those to `collect` are sown into.

        Args:
          params: of the model.
          batch: rows after the device transforms.
          capture: paths of modules whose outputs are returned as `intermediates`.
          collect: names of collections.
        """
        variables = {**self.state.collections, **{name: {} for name in collect}}
        given, named = self._arguments(batch)
        encodes = isinstance(self.task, (Embedding, MaskedAutoencoding))
        method = "encode" if encodes and hasattr(type(self.model), "encode") else "__call__"
        return forward(
            self.model, params, variables, *given, train=False, method=method, capture=capture,
            **named,
        )  # fmt: skip

    def _arguments(self, batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Returns the model's positional and keyword inputs."""
        name = self.task.input_names[0]
        if isinstance(self.task, LanguageModeling):
            named = {"begins": batch.get("begins")}
            if "segments" in batch:
                named["segments"] = batch["segments"][:, :-1]
            return (jnp.maximum(batch[name], 0)[:, :-1],), named
        if isinstance(self.task, MaskedLanguageModeling):
            return (batch[name],), {"mlm_positions": batch["mlm_positions"]}
        if isinstance(self.task, Translation):
            prefix = batch.get(PREFIX, batch[self.task.targets][:, :-1])
            return (batch[name], prefix), {}
        return self.task.model_inputs(self.model, batch)

    def _score(
        self,
        params: PyTree,
        x: Inputs,
        rows: Rows,
        deltas: Mapping[str, Array] | None = None,
        capture: Sequence[str] = (),
    ) -> tuple[Array, dict[str, Array]]:
        """Returns the scalars, and the captured outputs of modules by path."""
        batch = self.batch(x, rows)
        lookups = {number: x[name] for name, number in self.embedded.items()}
        with nn.intercept_methods(_edited(lookups, deltas or {})):
            if isinstance(self.target, Loss):
                return -self._losses(params, batch), {}
            outputs, collections = self.outputs(params, batch, capture)
        found = {}
        for path in capture:
            tree = collections.get("intermediates", {})
            for part in (*path.split("."), "__call__"):
                tree = tree.get(part, {})
            if tree:
                found[path] = tree[-1]
        return self.target.score(self.task, outputs, batch, rows["target"]), found

    def _losses(self, params: PyTree, batch: Batch) -> Array:
        """Returns the loss of each row, (rows,)."""
        if self.task.couples_rows:
            raise UserError(
                f"the loss of {type(self.task).__name__} depends on the other rows of a batch, so "
                f"no row has one to explain: leave --target out, or name an output"
            )

        def one(row: Batch) -> Array:
            row = jax.tree.map(lambda leaf: leaf[None], dict(row))
            metrics, _ = self.task.batch_metrics(self.model, params, self.state, row, train=False)
            terms = dict(self.task.loss_terms) or {"loss": 1.0}
            known = [(metrics[n], w) for n, w in terms.items() if n in metrics]
            if not known:
                raise UserError(
                    f"{type(self.task).__name__} computes no loss in evaluation to explain: pass "
                    f"an own jdl.explain.Target"
                )
            return jnp.stack([w * m.total / jnp.maximum(m.count, 1) for m, w in known]).sum()

        return jax.vmap(one)(batch)

    def _find_embeddings(self, batch: Batch) -> dict[str, int]:
        integers = [
            name
            for name in self._names
            if not jnp.issubdtype(jnp.asarray(batch[name]).dtype, jnp.floating)
        ]
        if not integers:
            return {}
        calls: list[tuple[int, ...]] = []

        def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            if _is_lookup(context):
                calls.append(jnp.shape(args[0]))
            return call(*args, **kwargs)

        def trace(batch: Batch) -> Any:
            with nn.intercept_methods(intercept):
                return self.outputs(self.params, batch)[0]

        jax.eval_shape(trace, dict(batch))
        given, named = self._arguments(batch)
        arrays = {**dict(zip(self.task.input_names, given, strict=False)), **named}
        found: dict[str, int] = {}
        for name in integers:
            shape = jnp.shape(arrays[name])
            free = [i for i, each in enumerate(calls) if each == shape and i not in found.values()]
            if free:
                found[name] = free[0]
            elif not self._reads_as_floats(name, batch):
                raise UserError(
                    f"{type(self.model).__name__} reads the integers {name!r} without an embedding "
                    f"at which to explain them: look them up with flax.linen.Embed, or in a method "
                    f"`embed(tokens)`"
                )
        return found

    def _reads_as_floats(self, name: str, batch: Batch) -> bool:
        """Whether the model has the same outputs for an input of integers as real numbers."""
        batch = jax.tree.map(jnp.asarray, dict(batch))
        try:
            known, _ = self.outputs(self.params, batch)
            as_floats = {**batch, name: jnp.asarray(batch[name], jnp.float32)}
            found, _ = self.outputs(self.params, as_floats)
        except UserError:
            return False
        pairs = zip(jax.tree.leaves(known), jax.tree.leaves(found), strict=True)
        return all(np.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in pairs)

    @functools.cached_property
    def _embed(self) -> Callable[[PyTree, Batch], Inputs]:
        """Returns the outputs of the lookups for rows, compiled."""

        def embed(params: PyTree, batch: Batch) -> Inputs:
            found: dict[int, Array] = {}
            calls = itertools.count()

            def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
                output = call(*args, **kwargs)
                if _is_lookup(context):
                    found[next(calls)] = output
                return output

            with nn.intercept_methods(intercept):
                self.outputs(params, batch)
            named = {name: found[number] for name, number in self.embedded.items()}
            return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), named)

        return jax.jit(embed)


def _check_read(paths: Sequence[str], outputs: Mapping[str, Array]) -> None:
    """Raises a UserError if the output of a module was not captured."""
    if missing := [path for path in paths if path not in outputs]:
        raise UserError(
            f"the output of {missing[0]} cannot be read, since it is inside of a scan or jit of "
            f"its own: name another layer"
        )


def _is_lookup(context: Any) -> bool:
    """Whether a method looks integers up in a table."""
    return context.method_name == ("__call__" if isinstance(context.module, nn.Embed) else "embed")


def _edited(lookups: Mapping[int, Array], deltas: Mapping[str, Array]) -> Any:
    """Returns an interceptor that replaces the outputs of lookups, and adds to those of modules."""
    calls = itertools.count()

    def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        output = call(*args, **kwargs)
        if _is_lookup(context):
            own = lookups.get(next(calls))
            output = output if own is None else own.astype(output.dtype)
        path = ".".join(context.module.path)
        if context.method_name == "__call__" and path in deltas:
            output = output + deltas[path].astype(output.dtype)
        return output

    return intercept
