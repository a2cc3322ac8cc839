"""DeepLIFT: differences from a baseline, followed back through a network's nonlinearities."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

from jdl.errors import UserError
from jdl.explain.baselines import Baseline
from jdl.explain.gradients import check_gradient, each_baseline, mean_scores
from jdl.explain.method import Method, Request
from jdl.explain.subject import Inputs, Rows, Subject
from jdl.typing import PyTree

Array = jax.Array

UNARY = {
    "abs", "acos", "acosh", "asin", "asinh", "atan", "atanh", "cbrt", "cos", "cosh", "digamma",
    "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "integer_pow", "lgamma", "log", "log1p",
    "logistic", "rsqrt", "sin", "sinh", "sqrt", "square", "tan", "tanh",
}  # fmt: skip
"""Primitives that are nonlinear functions of one element."""

ELEMENTWISE = UNARY | {
    "add", "add_any", "and", "clamp", "convert_element_type", "copy", "copy_p", "div", "eq",
    "floor", "ge", "gt", "is_finite", "le", "lt", "max", "min", "mul", "ne", "neg", "not", "or",
    "pow", "round", "select_n", "sign", "stop_gradient", "sub",
}  # fmt: skip
"""Primitives that compute each element of the same ones of their operands."""

CALLS = {
    "jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2", "custom_jvp_call",
    "custom_vjp_call", "custom_vjp_call_jaxpr",
}  # fmt: skip
"""Primitives that apply a jaxpr."""

TINY = 1e-9
"""Difference of an element below which its multiplier is the derivative."""


class Pair(NamedTuple):
    """A value at the input, and what it is at the baseline."""

    own: Any
    base: Any


@dataclass(frozen=True, kw_only=True)
class DeepLIFT(Method):
    """Differences from a baseline, by the rescale rule (Shrikumar et al., 2017).

    A nonlinearity passes differences on by their ratio, not by its derivative; a maximum gives them
    to the element that decides. Of products of two values that both depend on the input, as in the
    gates of an LSTM and in attention, each gets its part by the mean of the other, so that
    attributions sum to the scalar's difference in these networks too; with `products="gradient"`
    by its derivative, and they do not.

    Softmax and layer normalization are not rules of their own, but their functions of one element,
    sums, maxima and products. Captum's `DeepLift` has rules for modules alone (ReLU, sigmoid, tanh,
    max pooling and the like) and takes derivatives of all else: of a CNN both give the same; of an
    LSTM or a transformer with a module for each of those functions they do with
    `products="gradient"`.
    """

    baseline: Baseline = Baseline()  # from which differences are
    products: Literal["mean", "gradient"] = "mean"  # how a product divides its difference

    is_complete: ClassVar[bool] = True

    def attribute(self, request: Request) -> Inputs:
        """See `Method.attribute`."""
        found = [self._from(request, base) for base in each_baseline(self.baseline, request)]
        return jax.tree.map(lambda *leaves: np.mean(leaves, 0), *found)

    def baseline_scores(self, request: Request) -> np.ndarray:
        """See `Method.baseline_scores`."""
        return mean_scores(self.baseline, request)

    def _from(self, request: Request, base: Inputs) -> Inputs:
        joined = {name: np.stack([x, base[name]], 1) for name, x in request.x.items()}

        def part(asked: Request) -> Inputs:
            x, start = ({n: v[:, i] for n, v in asked.x.items()} for i in (0, 1))
            symmetric = self.products == "mean"
            return _multipliers(asked.subject, symmetric, asked.params, x, start, asked.rows)

        both = Request(**{**vars(request), "x": joined})
        found = both.by_parts(part)
        if request.params is request.subject.params:
            check_gradient(request, found)
        return {name: found[name] * (x - base[name]) for name, x in request.x.items()}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _multipliers(
    subject: Subject, symmetric: bool, params: PyTree, x: Inputs, base: Inputs, rows: Rows
) -> Inputs:
    """Returns what the difference of each input is multiplied by."""

    def score(x: Inputs) -> Array:
        return subject.score(params, x, rows)

    closed = jax.make_jaxpr(score)(x)
    bases = jax.tree.leaves(base)

    def total(x: Inputs) -> Array:
        given = [Pair(a, b) for a, b in zip(jax.tree.leaves(x), bases, strict=True)]
        (found,) = _Rules(symmetric).evaluate(closed.jaxpr, closed.consts, given)
        return _own(found).sum()

    return jax.grad(total)(x)


class _Rules:
    """Evaluates a jaxpr on pairs, so that its gradient has DeepLIFT's multipliers."""

    def __init__(self, symmetric: bool) -> None:
        self._symmetric = symmetric

    def evaluate(self, jaxpr: Any, consts: Sequence[Any], given: Sequence[Any]) -> list[Any]:
        """Returns the outputs, a `Pair` each where they depend on the input."""
        known: dict[Any, Any] = {}

        def read(variable: Any) -> Any:
            return variable.val if isinstance(variable, core.Literal) else known[variable]

        known |= dict(zip(jaxpr.constvars, consts, strict=True))
        known |= dict(zip(jaxpr.invars, given, strict=True))
        for equation in jaxpr.eqns:
            values = [read(variable) for variable in equation.invars]
            known |= dict(zip(equation.outvars, self._apply(equation, values), strict=True))
        return [read(variable) for variable in jaxpr.outvars]

    def _apply(self, equation: Any, values: list[Any]) -> list[Any]:
        name, bind = equation.primitive.name, functools.partial(_bind, equation)
        depends = [isinstance(value, Pair) for value in values]
        if not any(depends):
            return bind(*values)
        if name in CALLS:
            return self._call(equation, values)
        if name == "cond" and not depends[0]:
            # The forms of `jax.lax.platform_dependent` are equal.
            return self._inner(equation.params["branches"][-1], values[1:])
        if name == "scan":
            return self._scan(equation, values)
        if name == "stop_gradient":
            return values
        if name in UNARY or (name in ("max", "min", "pow", "clamp") and sum(depends) == 1):
            place = depends.index(True)

            def of_one(x: Array) -> Array:
                return bind(*values[:place], x, *values[place + 1 :])[0]

            return [rescaled(of_one, values[place])]
        if name in ("max", "min") and all(depends):
            return [_extremum(values[0], values[1], largest=name == "max")]
        if name == "reduce_max":
            return [_largest(values[0], tuple(map(int, equation.params["axes"])))]
        if name == "div" and depends[1]:
            inverse = rescaled(lambda x: 1 / x, values[1])
            return [self._product(lambda a, b: a * b, values[0], inverse)]
        if name in ("mul", "dot_general") and all(depends):
            return [self._product(lambda a, b: bind(a, b)[0], *values)]
        # What is left is linear in what depends on the input, or has its derivative.
        own = bind(*map(_own, values))
        base = bind(*(value.base if isinstance(value, Pair) else value for value in values))
        return [Pair(*pair) for pair in zip(own, base, strict=True)]

    def _call(self, equation: Any, values: list[Any]) -> list[Any]:
        """Applies what a call calls; a nonlinearity of one array, such as GELU, as a whole."""
        inner = next(
            value
            for key in ("jaxpr", "call_jaxpr", "fun_jaxpr")
            if (value := equation.params.get(key)) is not None
        )
        closed = inner if isinstance(inner, core.ClosedJaxpr) else core.ClosedJaxpr(inner, ())
        places = [place for place, value in enumerate(values) if isinstance(value, Pair)]
        out = equation.outvars
        same = len(out) == 1 and out[0].aval.shape == _own(values[places[0]]).shape
        if same and len(places) == 1 and _is_nonlinearity(closed.jaxpr):
            (place,) = places

            def of_one(x: Array) -> Array:
                return core.jaxpr_as_fun(closed)(*values[:place], x, *values[place + 1 :])[0]

            return [rescaled(of_one, values[place])]
        return self._inner(closed, values)

    def _inner(self, closed: Any, values: list[Any]) -> list[Any]:
        return self.evaluate(closed.jaxpr, closed.consts, values)

    def _scan(self, equation: Any, values: list[Any]) -> list[Any]:
        """Scans over pairs: the carry depends on the input, at the latest after a step."""
        params = equation.params
        if "ft_in" in params:  # JAX 0.12
            consts, carried, _ = map(len, params["ft_in"].unpack())
        else:
            consts, carried = params["num_consts"], params["num_carry"]
        fixed, carry = values[:consts], values[consts : consts + carried]

        def step(carry: Any, x: Any) -> tuple[Any, Any]:
            found = self._inner(params["jaxpr"], [*fixed, *carry, *x])
            pairs = [_pair(value) for value in found]
            return pairs[:carried], pairs[carried:]

        last, stacked = lax.scan(
            step, [_pair(value) for value in carry], values[consts + carried :],
            length=params["length"], reverse=params["reverse"],
        )  # fmt: skip
        return [*last, *stacked]

    def _product(self, product: Callable[[Any, Any], Any], a: Any, b: Any) -> Any:
        """A product of two values that depend on the input; of one that does, as it is."""
        if not isinstance(a, Pair):
            return Pair(product(a, b.own), product(a, b.base))
        own, base = product(a.own, b.own), product(a.base, b.base)
        if not self._symmetric:
            return Pair(own, base)
        stop = lax.stop_gradient
        left = product(a.own, stop((b.own + b.base) / 2))
        right = product(stop((a.own + a.base) / 2), b.own)
        return Pair(stop(own) + (left - stop(left)) + (right - stop(right)), base)


def rescaled(function: Callable[[Array], Array], x: Pair) -> Pair:
    """Returns a function of each element, whose derivative is the ratio of differences."""
    own, slope = jax.jvp(function, (x.own,), (jnp.ones_like(x.own),))
    base = function(x.base)
    difference = x.own - x.base
    near = jnp.abs(difference) < TINY
    ratio = (own - base) / jnp.where(near, 1, difference)
    return Pair(_with_slope(own, x.own, jnp.where(near, slope, ratio)), base)


def _with_slope(value: Array, x: Array, slope: Array) -> Array:
    """Returns a value whose derivative in `x` is `slope`."""
    stop = lax.stop_gradient
    return stop(value) + stop(slope) * (x - stop(x))


def _extremum(a: Pair, b: Pair, largest: bool) -> Pair:
    """The larger or smaller of two: a rise goes to what decides at the input, a fall at the base.

    Of the smaller it is the other way round. This is Captum's rule for pooling, two by two.
    """
    choose = jnp.maximum if largest else jnp.minimum
    own, base = choose(a.own, b.own), choose(a.base, b.base)
    change = own - base
    at_input = change >= 0 if largest else change <= 0
    first = jnp.where(at_input, a.own == own, a.base == base)
    result = lax.stop_gradient(own)
    for part, decides in ((a, first), (b, ~first)):
        difference = part.own - part.base
        ratio = jnp.where(
            jnp.abs(difference) < TINY, 1.0, change / jnp.where(difference == 0, 1, difference)
        )
        slope = jnp.where(decides, ratio, 0)
        result = result + _with_slope(jnp.zeros_like(own), part.own, slope)
    return Pair(result, base)


def _largest(x: Pair, axes: Sequence[int]) -> Pair:
    """The maximum over axes, by the rule of `_extremum`."""
    own, base = (each.max(tuple(axes), keepdims=True) for each in x)
    change = own - base
    decides = jnp.where(change >= 0, x.own == own, x.base == base)
    share = decides / decides.sum(tuple(axes), keepdims=True)
    difference = x.own - x.base
    ratio = jnp.where(
        jnp.abs(difference) < TINY, 1.0, change / jnp.where(difference == 0, 1, difference)
    )
    moved = _with_slope(jnp.zeros_like(x.own), x.own, share * ratio).sum(tuple(axes))
    squeeze = functools.partial(jnp.squeeze, axis=tuple(axes))
    return Pair(lax.stop_gradient(squeeze(own)) + moved, squeeze(base))


def _is_nonlinearity(jaxpr: Any) -> bool:
    """Whether a jaxpr computes each element of the same ones of its operands, not linearly."""
    names = set(_names(jaxpr))
    return bool(names) and names <= ELEMENTWISE


def _names(jaxpr: Any) -> list[str]:
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name not in CALLS:
            found.append(equation.primitive.name)
            continue
        for value in jax.tree.leaves(equation.params):
            if isinstance(value, (core.Jaxpr, core.ClosedJaxpr)):
                inner = value.jaxpr if isinstance(value, core.ClosedJaxpr) else value
                found += _names(inner)
    return found


def _bind(equation: Any, *values: Any) -> list[Any]:
    """Evaluates an equation as it is."""
    if equation.primitive.name in ("while", "sort"):
        raise UserError(
            f"DeepLIFT has no rule for the primitive {equation.primitive.name!r} of this model: "
            f"use --method integrated_gradients"
        )
    params = equation.primitive.get_bind_params(equation.params)
    found = equation.primitive.bind(*values, **params)
    return list(found) if equation.primitive.multiple_results else [found]


def _own(value: Any) -> Any:
    return value.own if isinstance(value, Pair) else value


def _pair(value: Any) -> Pair:
    return value if isinstance(value, Pair) else Pair(value, value)
