"""Estimates the peak memory of a traced function, without compiling it.

The jaxpr is walked in order. As XLA does, the walk fuses elementwise operations into those that
read their results, which are then never stored; every other array is live from the operation that
computes it to the last one that reads it. Inputs and outputs are not counted: a training step
donates its state, and the caller adds it once.
"""

import collections
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jax.extend import core
from jax.interpreters.partial_eval import dce_jaxpr

from jdl.analysis.flops import DOTS, held

CALLS = re.compile(
    r"p?jit|closed_call|core_call|custom_(jvp|vjp)_call|checkpoint|remat2?|foreign_call"
)
"""Primitives that run the program among their parameters once."""

RESHAPES = {"reshape", "squeeze", "expand_dims", "copy", "stop_gradient"}
"""Primitives whose result is their input, perhaps in another shape."""

MOVES = {
    "broadcast_in_dim", "dynamic_slice", "iota", "pad", "random_bits", "random_wrap", "rev",
    "random_unwrap", "slice", "split", "transpose",
}  # fmt: skip
"""Primitives that XLA fuses like elementwise ones, although shapes differ."""

COSTLY = {
    "cbrt", "cos", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "log", "log1p", "logistic",
    "pow", "rsqrt", "sin", "sqrt", "tan", "tanh",
}  # fmt: skip
"""Elementwise primitives that XLA does not compute again in each reader: stored if it has two."""

REDUCTIONS = re.compile(r"reduce_|arg|concatenate|gather|dynamic_update|cum")
"""Primitives that store their result and fuse the elementwise operations before them."""

STORED = re.compile(
    r"dot|conv_|sort|scatter|select_and|rng|fft|cholesky|qr|svd|eig|lu|top_k|all_|psum|"
    r"optimization_barrier|.*(solve|call|pallas|attention|matmul|rnn)"
)
"""Further primitives that store their result, whatever its shape."""

IN_PLACE = re.compile(r"scatter|dynamic_update")
"""Primitives that write into an input that nothing reads later, as fused ones do."""


@dataclass(eq=False)
class _Array:
    bytes: int  # on one device


Value = tuple[_Array, int | None]
"""An array, and which of its dimensions is split among devices."""


@dataclass(frozen=True)
class _Step:
    """An operation of a program whose calls are inlined."""

    reads: Sequence[_Array]
    makes: Sequence[_Array]
    kind: Literal["fused", "costly", "reduction", "stored"]
    in_place: bool
    inner: int  # peak bytes of the programs that it loops over or branches to


def nbytes(aval: Any) -> int:
    """Bytes of an array of this shape and dtype; a PRNG key counts as its key data."""
    return math.prod(aval.shape) * aval.dtype.itemsize if hasattr(aval, "shape") else 0


def peak(jaxpr: Any, dims: Sequence[int | None] = (), parts: int = 1) -> int:
    """Peak bytes on one device, without a program's inputs and outputs.

    Args:
      jaxpr: of `jax.make_jaxpr`, for one platform (`flops.localized`).
      dims: for each input, the dimension that is split among devices, or None; may be shorter than
        the inputs. The split is propagated through the program.
      parts: number of devices that share a split dimension.
    """
    # XLA stores nothing of what only the forms for other platforms read.
    used, _ = dce_jaxpr(getattr(jaxpr, "jaxpr", jaxpr), True, instantiate=True)
    return _walk(used, dims, parts)[0]


def _walk(jaxpr: Any, dims: Sequence[int | None], parts: int) -> tuple[int, list[int | None]]:
    """The peak bytes of a program, and the split dimension of each output."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    avals = [variable.aval for variable in (*jaxpr.constvars, *jaxpr.invars)]
    filled = [*[None] * len(jaxpr.constvars), *dims]
    filled += [None] * (len(avals) - len(filled))
    inputs = [_value(aval, dim, parts) for aval, dim in zip(avals, filled, strict=True)]
    steps: list[_Step] = []
    outputs = _inline(jaxpr, inputs, parts, steps)
    most = _peak(steps, {array for array, _ in inputs}, {array for array, _ in outputs})
    return most, [dim for _, dim in outputs]


def _value(aval: Any, dim: int | None = None, parts: int = 1) -> Value:
    return _Array(nbytes(aval) // (1 if dim is None else parts)), dim


def _inline(jaxpr: Any, inputs: Sequence[Value], parts: int, steps: list[_Step]) -> list[Value]:
    """Appends a program's operations to `steps` and returns its outputs."""
    known = dict(zip((*jaxpr.constvars, *jaxpr.invars), inputs, strict=True))

    def read(atom: Any) -> Value:
        return _value(atom.aval) if isinstance(atom, core.Literal) else known[atom]

    for equation in jaxpr.eqns:
        name, ins = equation.primitive.name, [read(atom) for atom in equation.invars]
        programs = [getattr(program, "jaxpr", program) for program in held(equation.params)]
        only = name == "cond" and len(programs) == 1  # the form for a platform
        if only or (programs and CALLS.fullmatch(name)):
            constants = [_value(variable.aval) for variable in programs[0].constvars]
            ins = ins[only:]  # without the index of the platform
            outs = _inline(programs[0], [*constants, *ins], parts, steps)
        elif name in RESHAPES:
            array, dim = ins[0]
            outs = [(array, _reshaped(equation, dim, parts))]
        else:
            inner, dims = _split(equation, programs, [dim for _, dim in ins], parts)
            outs = [
                _value(v.aval, dim, parts) for v, dim in zip(equation.outvars, dims, strict=True)
            ]
            kind = _kind(equation)
            in_place = kind in ("fused", "costly") or bool(IN_PLACE.match(name))
            steps.append(
                _Step([one for one, _ in ins], [one for one, _ in outs], kind, in_place, inner)
            )
        known |= dict(zip(equation.outvars, outs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _kind(equation: core.JaxprEqn) -> Literal["fused", "costly", "reduction", "stored"]:
    """How XLA treats a primitive; one whose operands broadcast to the result is elementwise."""
    name, shape = equation.primitive.name, _shape(equation.outvars[0])
    if name in COSTLY:
        return "costly"
    if REDUCTIONS.match(name):
        return "reduction"
    if STORED.match(name) or held(equation.params):
        return "stored"
    if name in MOVES or all(_broadcasts(_shape(v), shape) for v in equation.invars):
        return "fused"
    return "stored"


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    if len(shape) != len(to):
        return not shape
    return all(own in (1, size) for own, size in zip(shape, to, strict=True))


def _shape(variable: Any) -> tuple[int, ...]:
    return getattr(variable.aval, "shape", ())


def _split(
    equation: core.JaxprEqn, programs: Sequence[Any], dims: list[int | None], parts: int
) -> tuple[int, list[int | None]]:
    """The peak bytes within an operation, and the split dimension of each result."""
    name = equation.primitive.name
    if name == "scan":
        (body,) = programs
        most, made = _walk(body, _unstacked(dims, equation.invars, body.invars, -1), parts)
        return most, _unstacked(made, body.outvars, equation.outvars, 1)
    if name == "cond":
        found = [_walk(program, dims[1:], parts) for program in programs]
        return max(most for most, _ in found), found[0][1]
    most = max(map(peak, programs)) if name == "while" else 0
    return most, [_result_dim(equation, dims, _shape(v)) for v in equation.outvars]


def _unstacked(
    dims: Sequence[int | None], before: Sequence[Any], after: Sequence[Any], by: int
) -> list[int | None]:
    """Split dimensions where the arrays that a scan loops over lose, or gain, their axis 0."""
    shifts = [by * (len(_shape(a)) != len(_shape(b))) for a, b in zip(before, after, strict=True)]
    return [
        None if dim is None or dim + shift < 0 else dim + shift
        for dim, shift in zip(dims, shifts, strict=True)
    ]


def _reshaped(equation: core.JaxprEqn, dim: int | None, parts: int) -> int | None:
    """Where a split dimension is after a reshape: behind as many elements, and still divisible."""
    if dim is None:
        return None
    before, shape = math.prod(_shape(equation.invars[0])[:dim]), _shape(equation.outvars[0])
    for position, size in enumerate(shape):
        if size > 1 and not size % parts and math.prod(shape[:position]) == before:
            return position
    return None


def _result_dim(
    equation: core.JaxprEqn, dims: Sequence[int | None], out: tuple[int, ...]
) -> int | None:
    """The split dimension of a result; None where devices sum over it or hold all of it."""
    split = [(side, dim) for side, dim in enumerate(dims) if dim is not None]
    if not split:
        return None
    shapes = [_shape(variable) for variable in equation.invars]
    for position, (origins, size) in enumerate(
        zip(_origins(equation, shapes, len(out)), out, strict=True)
    ):
        if any((side, dim) in origins and shapes[side][dim] == size for side, dim in split):
            return position
    return None


def _origins(
    equation: core.JaxprEqn, shapes: Sequence[tuple[int, ...]], ndim: int
) -> list[set[tuple[int, int]]]:
    """For each dimension of a result, the operands and their dimensions that it runs over."""
    name, params = equation.primitive.name, equation.params
    if name in DOTS:
        contracted, batch = params["dimension_numbers"]
        shared = [set(enumerate(pair)) for pair in zip(*batch, strict=True)]
        return shared + [
            {(side, dim)}
            for side in (0, 1)
            for dim in range(len(shapes[side]))
            if dim not in (*contracted[side], *batch[side])
        ]
    if name == "transpose":
        return [{(0, dim)} for dim in params["permutation"]]
    if name == "broadcast_in_dim":
        places = list(params["broadcast_dimensions"])
        return [{(0, places.index(dim))} if dim in places else set() for dim in range(ndim)]
    if REDUCTIONS.match(name) and "axes" in params:
        return [{(0, dim)} for dim in range(len(shapes[0])) if dim not in params["axes"]]
    alike = [side for side, shape in enumerate(shapes) if len(shape) == ndim]
    return [{(side, dim) for side in alike} for dim in range(ndim)]


def _peak(steps: Sequence[_Step], inputs: set[_Array], outputs: set[_Array]) -> int:
    """The most bytes that are live at once, without inputs and outputs."""
    readers = collections.Counter(array for step in steps for array in set(step.reads))
    needed = outputs.union(*(step.reads for step in steps if step.kind == "stored"))
    # The arrays in memory from which each array is computed: itself, if it is stored.
    sources = {array: {array} for array in inputs}
    stored: list[list[_Array]] = []
    last: dict[_Array, int] = {}  # the step that reads an array last
    for time, step in enumerate(steps):
        read = set().union(*(sources.get(array, ()) for array in step.reads))
        once = {"fused": math.inf, "costly": 2}.get(step.kind, 0)
        stored.append([x for x in step.makes if x in needed or readers[x] >= once])
        sources |= {array: {array} if array in stored[-1] else read for array in step.makes}
        if stored[-1]:
            last |= dict.fromkeys((*read, *stored[-1]), time)
    ends = collections.Counter[int]()
    for array, time in last.items():
        ends[time] += array.bytes if array not in inputs | outputs else 0
    live = most = 0
    for time, step in enumerate(steps):
        new = sum(array.bytes for array in stored[time] if array not in inputs | outputs)
        grown = max(new - ends[time], 0) if step.in_place else new
        most = max(most, live + step.inner + grown)
        live += new - ends[time]
    return most
