"""Exports the prediction of a run as one StableHLO file, which JAX runs without jdl."""

import contextlib
import dataclasses
import importlib.util
import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import export

from jdl.errors import UserError, first_line, install_command
from jdl.inference.weights import dequantize, quantize
from jdl.layers import LoRA, merge_lora
from jdl.ops.platforms import portable
from jdl.state import TrainState
from jdl.step import predict
from jdl.trainer.record import to_host
from jdl.trainer.run import Run
from jdl.typing import Platform, PyTree

Weights = Literal["fp32", "int8"]
"""In what an exported function holds its weights."""


def require() -> None:
    """Checks that functions can be exported.

    Raises:
      UserError: the package flatbuffers is missing.
    """
    if importlib.util.find_spec("flatbuffers") is None:
        raise UserError(f"an export needs the package flatbuffers: {install_command('export')}")


def check_target(path: Path) -> None:
    """Checks that a file can be written: it is new, or an older export.

    Raises:
      UserError: the path cannot be written, or is another kind of file.
    """
    require()
    if path.is_dir():
        raise UserError(f"{path} is a directory: name a file")
    if not path.parent.is_dir():
        raise UserError(f"there is no directory {path.parent} to write {path.name} into")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"{path.parent} cannot be written")
    if path.exists():
        try:
            export.deserialize(bytearray(path.read_bytes()))
        except Exception as error:  # JAX raises many kinds for foreign contents
            raise UserError(
                f"{path} exists and is no export that could be replaced: name another file"
            ) from error


def export_prediction(
    run: Run,
    platforms: Sequence[Platform] = (),
    *,
    weights: Weights = "fp32",
    state: Any = None,
) -> export.Exported:
    """Lowers the prediction of a run, with its weights, to a function of named arrays.

    The arguments are the arrays of a batch that the prediction depends on, as the host transforms
    return them; device transforms are part of the function. It holds the form of each operation for
    each platform, without cuDNN's, and takes any number of rows. Where the model cannot be lowered
    like that, it takes exactly as many rows as a batch of the run.

    Args:
      run: a trained run.
      platforms: on which the function can run; empty: CPUs, NVIDIA GPUs and the current platform,
        or the current one alone where the model cannot be lowered for all.
      weights: int8 holds the kernels in a quarter of the bytes, each output channel with a scale
        (`jdl.inference.weights.quantize`); they are multiplied out before they are used.
      state: a gathered one to export, as it is evaluated; None for the run's own.

    Raises:
      UserError: the model cannot be lowered in any of these ways.
    """
    state = run.evaluation_state(run.gather_state()) if state is None else state
    params, collections = jax.tree.map(
        lambda x: jnp.asarray(to_host(x)), (state.params, state.collections)
    )
    _, params = merge_lora(run.program.model, params)
    arrays = (quantize(params) if weights == "int8" else params, collections)
    here = export.default_export_platform()
    choices = [platforms] if platforms else [(here, "cpu", "cuda"), (here,)]
    counts = *export.symbolic_shape("rows"), run.experiment.batch_size
    *ways, last = itertools.product(counts, (tuple(dict.fromkeys(names)) for names in choices))
    try:
        with portable():
            names = _used(run, arrays)
            for way in ways:
                with contextlib.suppress(Exception):  # JAX raises many kinds
                    return _lowered(run, arrays, names, *way)
            return _lowered(run, arrays, names, *last)
    except Exception as error:
        raise UserError(f"the prediction cannot be exported: {first_line(error)}") from error


def write_export(path: Path, function: export.Exported) -> None:
    """Writes a function to a file, atomically.

    Raises:
      UserError: it returns something other than arrays in dicts, lists and tuples.
    """
    draft = path.with_name(f".{path.name}.tmp")
    try:
        draft.write_bytes(function.serialize())
        draft.replace(path)
    except ValueError as error:
        raise UserError(f"the prediction cannot be exported: {first_line(error)}") from error
    finally:
        draft.unlink(missing_ok=True)


def signature(function: export.Exported) -> str:
    """Returns the argument and result types of a function, and its platforms."""
    takes, gives = (
        [f"{x.dtype}[{','.join(map(str, x.shape))}]" for x in avals]
        for avals in (function.in_avals, function.out_avals)
    )
    _, named = jax.tree.unflatten(function.in_tree, takes)
    arguments = ", ".join(f"{name}: {kind}" for name, kind in named.items())
    return f"({arguments}) -> {', '.join(gives)} on {', '.join(function.platforms)}"


def _used(run: Run, weights: PyTree) -> list[str]:
    """Returns the names of the batch arrays that the prediction depends on."""
    arrays = {name: leaf for name, leaf in run.batch.items() if name != "mask"}
    probe = export.export(jax.jit(lambda arrays, weights: _predicted(run, weights, arrays)))
    kept = probe(arrays, jax.eval_shape(lambda: weights)).module_kept_var_idx
    return [name for index, name in enumerate(sorted(arrays)) if index in kept]


def _lowered(
    run: Run, weights: PyTree, names: Sequence[str], rows: Any, platforms: Sequence[str]
) -> export.Exported:
    shapes = {
        name: jax.ShapeDtypeStruct((rows, *run.batch[name].shape[1:]), run.batch[name].dtype)
        for name in names
    }

    def prediction(**arrays: jax.Array) -> Any:
        return _predicted(run, weights, arrays)

    return export.export(jax.jit(prediction), platforms=platforms)(**shapes)


def _predicted(run: Run, weights: PyTree, arrays: Mapping[str, jax.Array]) -> Any:
    """Returns the prediction of the task; missing arrays are zeros."""
    rows = next(iter(arrays.values())).shape[0]
    absent = {
        name: jnp.zeros((rows, *leaf.shape[1:]), leaf.dtype)
        for name, leaf in run.batch.items()
        if name not in arrays
    }
    params, collections = weights
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        key=jax.random.key(0),
        params=dequantize(params),
        collections=collections,
        opt_state=(),
    )
    program = run.program
    if isinstance(program.model, LoRA):  # whose changes are merged
        program = dataclasses.replace(program, model=program.model.model)
    return predict(program, state, {**absent, **arrays, "mask": jnp.ones(rows, bool)})
