"""How much memory a traced function holds at most, told before it is compiled.

The trace is walked in its order. Like XLA, the walk takes cheap operations together with those that
read what they give, which is then never stored; all else lies in memory from where it is computed
to where it is last read. Inputs and outputs are counted elsewhere: a step is given its state and
writes the new one in its place.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from jax.extend import core

from jdl.analysis.flops import held

CALLS = {
    "jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "checkpoint",
    "remat", "remat2",
}  # fmt: skip
"""Run what they hold once, in their place."""

SAME = {"reshape", "squeeze", "expand_dims", "copy", "stop_gradient"}
"""Give what they read, under another shape."""

CHEAP = {
    "abs", "add", "add_any", "and", "bitcast_convert_type", "broadcast_in_dim", "ceil", "clamp",
    "convert_element_type", "div", "dynamic_slice", "eq", "floor", "ge", "gt", "integer_pow",
    "iota", "is_finite", "le", "lt", "max", "min", "mul", "ne", "neg", "not", "or", "pad",
    "random_bits", "random_fold_in", "random_unwrap", "random_wrap", "rem", "rev", "round",
    "select_n", "shift_left", "shift_right_arithmetic", "shift_right_logical", "sign", "slice",
    "split", "square", "sub", "transpose", "xor",
}  # fmt: skip
"""Computed anew by each operation that reads them."""

COSTLY = {
    "cbrt", "cos", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "log", "log1p", "logistic",
    "pow", "rsqrt", "sin", "sqrt", "tan", "tanh",
}  # fmt: skip
"""Computed once, and stored where several operations read them."""

FUSED = ("reduce_", "arg", "concatenate", "gather", "dynamic_update", "cum")
"""How names begin of operations that store what they give and read what need not be stored."""

IN_PLACE = ("scatter", "dynamic_update")
"""How names begin of operations that write into what they read last, as cheap ones do."""

Value = tuple[int, int | None]
"""The number of an array in memory, and which of its dimensions is split among devices."""


@dataclass
class _Graph:
    """What a program computes, with its calls resolved."""

    parts: int  # devices among which a dimension is split
    bytes: list[int] = field(default_factory=list)  # of each value, on one device
    steps: list[tuple[str, list[int], list[int], int]] = field(default_factory=list)
    """Operation, what it reads, what it gives, and what it holds meanwhile."""

    def value(self, aval: Any, dim: int | None = None) -> Value:
        """A new value."""
        self.bytes.append(nbytes(aval) // (1 if dim is None else self.parts))
        return len(self.bytes) - 1, dim


def nbytes(aval: Any) -> int:
    """Bytes of an array of this shape and dtype; a PRNG key counts as its key data."""
    return math.prod(aval.shape) * aval.dtype.itemsize if hasattr(aval, "shape") else 0


def peak(jaxpr: Any, dims: Sequence[int | None] = (), parts: int = 1) -> int:
    """Bytes that one device holds at most beside a program's inputs and outputs.

    Args:
      jaxpr: as `jax.make_jaxpr` gives it.
      dims: of each input, the dimension that is split among devices, as far as there are inputs
        that are; products, sums and what lies between carry it on.
      parts: how many devices those are.
    """
    graph = _Graph(parts)
    inner = getattr(jaxpr, "jaxpr", jaxpr)
    filled = [*dims, *[None] * (len(inner.invars) - len(dims))]
    constants = [graph.value(variable.aval) for variable in inner.constvars]
    given = [graph.value(v.aval, dim) for v, dim in zip(inner.invars, filled, strict=True)]
    outputs = _resolve(graph, inner, [*constants, *given])
    return _most(graph, {i for i, _ in (*constants, *given)}, [i for i, _ in outputs])


def _resolve(graph: _Graph, jaxpr: Any, given: Sequence[Value]) -> list[Value]:
    """Adds a program's operations to the graph and returns its outputs."""
    known = dict(zip((*jaxpr.constvars, *jaxpr.invars), given, strict=True))

    def look_up(atom: Any) -> Value:
        return graph.value(atom.aval) if isinstance(atom, core.Literal) else known[atom]

    for equation in jaxpr.eqns:
        name, ins = equation.primitive.name, [look_up(atom) for atom in equation.invars]
        if name in CALLS and (inner := held(equation.params)):
            program = getattr(inner[0], "jaxpr", inner[0])
            constants = [graph.value(variable.aval) for variable in program.constvars]
            outs = _resolve(graph, program, [*constants, *ins])
        else:
            meanwhile, dims = _loop(equation, ins, graph.parts)
            avals = [variable.aval for variable in equation.outvars]
            if name in SAME:
                outs = [(ins[0][0], dims[0])]
            else:
                outs = [graph.value(aval, dim) for aval, dim in zip(avals, dims, strict=True)]
                read, made = [i for i, _ in ins], [i for i, _ in outs]
                graph.steps.append((name, read, made, meanwhile))
        known |= dict(zip(equation.outvars, outs, strict=True))
    return [look_up(atom) for atom in jaxpr.outvars]


def _loop(
    equation: core.JaxprEqn, ins: Sequence[Value], parts: int
) -> tuple[int, list[int | None]]:
    """What an operation holds meanwhile, and how the arrays that it gives are split."""
    name, dims = equation.primitive.name, [dim for _, dim in ins]
    inner = [getattr(one, "jaxpr", one) for one in held(equation.params)]
    if name == "scan":
        (body,) = inner
        # What it loops over comes with an axis 0 more than its body is given, or gives.
        given = [
            dim if dim is None or _ndim(outer) == _ndim(one) else (dim - 1 if dim else None)
            for dim, outer, one in zip(dims, equation.invars, body.invars, strict=True)
        ]
        made = [
            dim if dim is None or _ndim(outer) == _ndim(one) else dim + 1
            for dim, outer, one in zip(
                _dims_out(body, given, parts), equation.outvars, body.outvars, strict=True
            )
        ]
        return peak(body, given, parts), made
    if name == "cond":
        return max(peak(one, dims[1:], parts) for one in inner), _dims_out(
            inner[0], dims[1:], parts
        )
    most = max(map(peak, inner)) if name == "while" else 0
    return most, [_dim_out(equation, dims, out.aval, parts) for out in equation.outvars]


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _ndim(variable: Any) -> int:
    return len(_shape(variable))


def _dims_out(jaxpr: Any, dims: Sequence[int | None], parts: int) -> list[int | None]:
    """How a program's outputs are split, given how its inputs are."""
    graph = _Graph(parts)
    given = [graph.value(v.aval, dim) for v, dim in zip(jaxpr.invars, dims, strict=True)]
    constants = [graph.value(variable.aval) for variable in jaxpr.constvars]
    return [dim for _, dim in _resolve(graph, jaxpr, [*constants, *given])]


def _dim_out(
    equation: core.JaxprEqn, dims: Sequence[int | None], out: Any, parts: int
) -> int | None:
    """The dimension along which an operation's result stays split; None where devices sum it."""
    name, params = equation.primitive.name, equation.params
    found = [(_shape(v), dim) for v, dim in zip(equation.invars, dims, strict=True)]
    split = [(shape, dim) for shape, dim in found if dim is not None]
    if not split or not hasattr(out, "shape"):
        return None
    if name == "dot_general":
        return _dim_of_dot(params["dimension_numbers"], found)
    shape, dim = split[0]
    if name == "transpose":
        return list(params["permutation"]).index(dim)
    if name == "broadcast_in_dim":
        there = params["broadcast_dimensions"][dim]
        return there if out.shape[there] == shape[dim] else None
    if name.startswith(("reduce_", "arg")) and "axes" in params:
        gone = params["axes"]
        return None if dim in gone else dim - sum(axis < dim for axis in gone)
    if name in SAME:
        before = math.prod(shape[:dim])
        places = range(len(out.shape))
        fits = [
            i for i in places if math.prod(out.shape[:i]) == before and not out.shape[i] % parts
        ]
        return next((i for i in fits if out.shape[i] > 1), None)
    same = [d for s, d in split if len(s) == len(out.shape) and out.shape[d] == s[d]]
    return same[0] if same else None


def _dim_of_dot(numbers: Any, found: Sequence[tuple[Any, int | None]]) -> int | None:
    """Where the split dimension of a factor is in the product; None if it is summed over."""
    contracted, batch = numbers
    free = [
        [i for i in range(len(shape)) if i not in (*contracted[side], *batch[side])]
        for side, (shape, _) in enumerate(found)
    ]
    begin = len(batch[0])
    for side, (_, dim) in enumerate(found):
        if dim in batch[side]:
            return list(batch[side]).index(dim)
        if dim in free[side]:
            return begin + side * len(free[0]) + free[side].index(dim)
    return None


def _most(graph: _Graph, given: set[int], outputs: Sequence[int]) -> int:
    """The most bytes that lie in memory at once, without inputs and outputs."""
    stored, reads = _stored(graph, given, outputs)
    last = dict.fromkeys(range(len(graph.bytes)), -1)
    for time, read in enumerate(reads):
        last |= dict.fromkeys((*stored[time], *read), time)
    ends: list[list[int]] = [[] for _ in graph.steps]
    for value, time in last.items():
        if time >= 0:
            ends[time].append(value)
    free, live, most = given | set(outputs), 0, 0
    for time, (name, _, _, meanwhile) in enumerate(graph.steps):
        new = sum(graph.bytes[value] for value in stored[time] if value not in free)
        gone = sum(graph.bytes[value] for value in ends[time] if value not in free)
        in_place = name in CHEAP | COSTLY or name.startswith(IN_PLACE)
        most = max(most, live + meanwhile + (max(new - gone, 0) if in_place else new))
        live += new - gone
    return most


def _stored(
    graph: _Graph, given: set[int], outputs: Sequence[int]
) -> tuple[list[list[int]], list[set[int]]]:
    """For each operation which of its results are stored, and what they are computed from."""
    readers, needed = [0] * len(graph.bytes), set(outputs)
    for name, ins, _, _ in graph.steps:
        for value in set(ins):
            readers[value] += 1
        if name not in CHEAP | COSTLY and not name.startswith(FUSED):
            needed |= set(ins)
    # What each value is computed from that lies in memory: itself, if it does.
    roots: list[frozenset[int]] = [
        frozenset((i,) if i in given else ()) for i in range(len(readers))
    ]
    stored: list[list[int]] = []
    reads: list[set[int]] = []
    for name, ins, outs, _ in graph.steps:
        read = frozenset().union(*(roots[value] for value in ins))
        kept = [
            value
            for value in outs
            if value in needed
            or not (name in CHEAP or (name in COSTLY and readers[value] < 2))
        ]  # fmt: skip
        for value in outs:
            roots[value] = frozenset((value,)) if value in kept else read
        stored.append(kept)
        reads.append(set(read) if kept else set())
    return stored, reads
