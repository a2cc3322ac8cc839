"""Functions that a library runs on CPUs, and that are written in JAX for all else."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import batching, mlir

from jdl.ops import onednn

Array = jax.Array


def call(
    function: Callable[..., tuple[Array, ...]], target: str, *arguments: Array
) -> tuple[Array, ...]:
    """Calls `function`, or where a program is lowered for one CPU device, a foreign one like it.

    FLOPs and memory are those of `function`. It is not differentiated: use it in the rules of a
    `jax.custom_vjp`. Under `jax.vmap`, in exported programs, for other platforms and without the
    extra `onednn`, `function` runs.

    Args:
      function: of arrays, returning a tuple of arrays.
      target: name of the function of `onednn` with the same arguments and results, of float32.
      *arguments: of both.
    """
    shapes = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arguments)
    return tuple(call_p.bind(*arguments, form=_traced(function, shapes), target=target))


call_p = Primitive("foreign_call")
call_p.multiple_results = True


@functools.cache
def _traced(function: Callable[..., Any], shapes: tuple[Any, ...]) -> Any:
    return jax.make_jaxpr(function)(*shapes)


def _shapes(first: Any, *_: Any, form: Any, target: str) -> list[Any]:
    """Shapes of the results, which vary over mapped axes as the first argument does."""
    del target
    return [first.update(shape=aval.shape, dtype=aval.dtype) for aval in form.out_avals]


def _lower(ctx: Any, *arguments: Any, form: Any, target: str) -> Any:
    """Lowers a call for a CPU."""
    avals = (*ctx.avals_in, *ctx.avals_out)
    served = onednn.is_alone(ctx.module_context) and all(x.dtype.name == "float32" for x in avals)
    if served and all(x.size for x in avals) and onednn.library() is not None:
        return jax.ffi.ffi_lowering(target)(ctx, *arguments)
    return _lower_form(ctx, *arguments, form=form, target=target)


def _lower_form(ctx: Any, *arguments: Any, form: Any, target: str) -> Any:
    del target
    return mlir.lower_fun(jaxpr_as_fun(form), multiple_results=True)(ctx, *arguments)


def _batch(arguments: Any, axes: Any, form: Any, target: str) -> Any:
    del target
    results = jax.vmap(jaxpr_as_fun(form), in_axes=axes)(*arguments)
    return results, [0] * len(results)


@functools.cache
def _compiled(form: Any, target: str) -> Any:
    return jax.jit(functools.partial(call_p.bind, form=form, target=target))


call_p.def_impl(lambda *arguments, form, target: _compiled(form, target)(*arguments))
call_p.def_abstract_eval(_shapes)
batching.primitive_batchers[call_p] = _batch
mlir.register_lowering(call_p, _lower_form)
mlir.register_lowering(call_p, _lower, platform="cpu")
