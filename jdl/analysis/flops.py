"""Counts the FLOPs and the minimum memory traffic of a function.

`Compiled.cost_analysis` counts the body of a scan once, whatever its length; here the jaxpr is
walked, so a recurrent network's count includes all its steps.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.export import default_export_platform
from jax.extend import core

from jdl.ops import convolution, dot

# Primitives whose matrix products cannot be read from their parameters.
OPAQUE = re.compile(r"dot|matmul|attention|rnn|pallas|ffi_call|custom_call|hi_primitive|exported")
PLATFORMS = "branches_platforms"
"""Parameter of the primitive `cond` that JAX's `platform_dependent` binds."""

PARTS = tuple(primitive.name for primitive in convolution.PARTS)
DOTS = ("dot_general", dot.product_p.name)
JAXPRS = (core.Jaxpr, core.ClosedJaxpr)  # one class since JAX 0.11


@dataclass(frozen=True, kw_only=True)
class Cost:
    """FLOPs and bytes of one call, on all devices together."""

    flops: int  # of matrix products and convolutions, two per multiply-add
    bytes: int  # of all inputs and outputs, each moved once


def count(function: Callable[..., Any], *args: Any) -> Cost:
    """Traces `function` on `args` and returns the cost of one call; computes nothing.

    `flops` follows the convention of the model FLOPs utilization (Chowdhery et al. 2022, "PaLM",
    appendix B): matrix products and convolutions alone, two operations per multiply-add, whatever
    the dtype. Taps of a convolution that fall on padding or between dilated inputs are left out. A
    scan counts as often as it is long, a condition as its most expensive branch,
    `jax.lax.platform_dependent` as its form for this platform, and rematerialized or unused
    products count like any other, since the function is taken as traced.

    `bytes` is a lower bound: what must be read and written if everything between stays on the
    chip. Arrays that `function` closes over are inputs too; a PRNG key counts as its key data.

    Args:
        function: of positional arguments, jitted or not.
        *args: pytrees of arrays or of `jax.ShapeDtypeStruct`s.

    Raises:
        ValueError: if a product stands in a while loop, whose length is not known before it runs,
            or in a primitive that hides its products, such as a Pallas kernel.
    """
    jaxpr = localized(jax.make_jaxpr(function)(*args))
    constants = [jax.typeof(constant) for constant in _constants(jaxpr).values()]
    moved = sum(
        math.prod(aval.shape) * aval.dtype.itemsize
        for aval in (*constants, *jaxpr.in_avals, *jaxpr.out_avals)
    )
    return Cost(flops=of(jaxpr), bytes=moved)


def held(params: dict[str, Any]) -> list[Any]:
    """The jaxprs among a primitive's parameters, nested ones included."""
    return [leaf for leaf in jax.tree.leaves(params) if isinstance(leaf, JAXPRS)]


def localized(jaxpr: Any) -> Any:
    """A jaxpr in which each `jax.lax.platform_dependent` has only its form for this platform."""
    here, plain = default_export_platform(), getattr(jaxpr, "jaxpr", jaxpr)
    equations = []
    for equation in plain.eqns:
        params = jax.tree.map(
            lambda x: localized(x) if isinstance(x, JAXPRS) else x,
            dict(equation.params),
            is_leaf=lambda x: isinstance(x, JAXPRS),
        )
        if platforms := params.pop(PLATFORMS, None):
            matches = [each is None or here in each for each in platforms]
            params["branches"] = (params["branches"][matches.index(True)],)
        equations.append(equation.replace(params=params))
    found = plain.replace(eqns=equations)
    return jaxpr.replace(jaxpr=found) if plain is not jaxpr else found


def _constants(jaxpr: Any) -> dict[int, Any]:
    """The arrays that a jaxpr or an inner one closes over, by identity: each is read once."""
    found = {id(constant): constant for constant in getattr(jaxpr, "consts", ())}
    for equation in jaxpr.eqns:
        for inner in held(equation.params):
            found |= _constants(inner)
    return found


def of(jaxpr: Any, convolutions: bool = True) -> int:
    """The FLOPs of a `Jaxpr` or a `ClosedJaxpr`, counted as in `count`.

    Args:
      jaxpr: of a function.
      convolutions: count these too, not only matrix products.
    """
    return sum(_flops_of_equation(equation, convolutions) for equation in jaxpr.eqns)


def _flops_of_equation(equation: core.JaxprEqn, convolutions: bool) -> int:
    name, params = equation.primitive.name, equation.params
    if name in DOTS:
        return _flops_of_dot(equation)
    if name == "conv_general_dilated":
        return _flops_of_conv(equation) if convolutions else 0
    if name in PARTS:
        return _flops_of_part(equation) if convolutions else 0
    if name == "custom_linear_solve":  # also holds the product with the matrix, which is not run
        return of(params["jaxprs"].solve, convolutions)
    if OPAQUE.search(name):
        raise ValueError(
            f"the matrix products inside {name!r} cannot be counted: count a version of the "
            "function that is written with jax.numpy"
        )
    inner = [of(jaxpr, convolutions) for jaxpr in held(params)]
    if name == "cond":
        return max(inner)
    if name == "while" and any(inner):
        raise ValueError(
            "a matrix product or convolution stands in a while loop, whose length is unknown: "
            "use jax.lax.scan, or jax.lax.fori_loop with constant bounds"
        )
    return _repeats(name, params) * sum(inner)


def _repeats(name: str, params: dict[str, Any]) -> int:
    """How often a primitive runs its inner jaxpr in one call."""
    if name == "scan":
        return params["length"]
    if name == "shard_map":  # its jaxpr is that of one device
        shape = params["mesh"].shape
        return math.prod(shape[axis] for axis in params.get("newly_manual_axes", shape))
    return 1


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _flops_of_dot(equation: core.JaxprEqn) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = _shape(equation.invars[0])
    terms = math.prod(left[axis] for axis in contracted)
    return 2 * math.prod(_shape(equation.outvars[0])) * terms


def _flops_of_conv(equation: core.JaxprEqn) -> int:
    """Both kinds of groups are in the shapes: the kernel holds the input features of one group."""
    params, numbers = equation.params, equation.params["dimension_numbers"]
    variables = (*equation.invars, *equation.outvars)
    specs = (numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec)
    inputs, kernel, (batch, features, *outputs) = (
        [_shape(variable)[axis] for axis in spec]
        for variable, spec in zip(variables, specs, strict=True)
    )
    spatial = zip(
        inputs[2:],
        kernel[2:],
        outputs,
        params["window_strides"],
        params["padding"],
        params["lhs_dilation"],
        params["rhs_dilation"],
        strict=True,
    )
    return 2 * batch * features * kernel[1] * math.prod(_hits(*one) for one in spatial)


def _flops_of_part(equation: core.JaxprEqn) -> int:
    """A convolution of `jdl.ops` and its gradients by input and kernel: all have the same taps."""
    window, size = equation.params["window"], equation.params["size"]
    (a, b), part = map(_shape, equation.invars), PARTS.index(equation.primitive.name)
    images = size if part == 1 else a[1:3]
    outputs = (size, a[1:3], b[1:3])[part]
    channels = a[3] * b[2] if part == 1 else a[3] * b[3]
    spatial = zip(
        images, window.kernel, outputs, window.strides, window.padding, (1, 1), window.dilation,
        strict=True,
    )  # fmt: skip
    return 2 * a[0] * channels * math.prod(_hits(*one) for one in spatial)


def _hits(
    size: int,
    kernel: int,
    outputs: int,
    stride: int,
    padding: tuple[int, int],
    lhs_dilation: int,
    rhs_dilation: int,
) -> int:
    """Counts pairs of output position and kernel tap, in one dimension, that read an input."""
    # Loops over the shorter: in a weight gradient the kernel is as long as the signal.
    (few, step), (many, stretch) = sorted([(outputs, stride), (kernel, rhs_dilation)])
    line = np.arange(many) * stretch - padding[0]
    hits = 0
    for at in range(few):
        place = line + at * step
        inside = (place >= 0) & (place < size * lhs_dilation) & (place % lhs_dilation == 0)
        hits += int(np.count_nonzero(inside))
    return hits
