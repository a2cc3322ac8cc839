"""Converts what users pass from Python, such as lists and frames, to arrays of numbers."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
import numpy as np

from jdl.data.notation import number_of
from jdl.errors import UserError, first_line, nearest


def to_numbers(values: Any, where: str) -> np.ndarray:
    """Converts arrays, lists, series and frames to an array of finite numbers.

    Args:
      values: an array of NumPy, JAX or PyTorch, nested lists, or a series or frame of pandas or
        Polars, whose columns are stacked along axis 1.
      where: what the values are called in messages.

    Returns:
      (examples, ...), its dtype unchanged; that of a frame is the common one of its columns.

    Raises:
      UserError: a value is missing, is no number, or exceeds the 32 bits in which JAX computes.
    """
    if is_frame(values):
        names = column_names(values, where)
        if not names:
            raise UserError(f"{where} has no columns")
        return np.stack([to_numbers(values[each], f"{where}[{each!r}]") for each in names], 1)
    array = to_array(values, where)
    if array.ndim == 0:
        raise UserError(f"{where} is {values!r:.40}, where an array with one row per example goes")
    if array.dtype.kind not in "biufc":
        array = _from_objects(array, where)
    if array.dtype.kind == "c":
        raise UserError(f"{where} is complex: pass real and imaginary parts, as two features")
    return _check_range(array, where)


def to_array(values: Any, where: str) -> np.ndarray:
    """Converts arrays and nested lists to an array of a dtype that JAX has, or of objects.

    Raises:
      UserError: they are sparse, masked or ragged, or no array for another reason.
    """
    if hasattr(values, "toarray"):
        raise UserError(f"{where} is a sparse matrix: pass {where}.toarray()")
    if np.ma.is_masked(values):
        row = np.argwhere(np.ma.getmaskarray(values))[0, 0]
        raise UserError(f"{where} holds a masked value at row {row}: fill or drop it")
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise UserError(
            f"the examples of {where} differ in shape: pad them, or pass several inputs as a dict "
            f"of arrays"
        ) from error
    except Exception as error:  # such as a tensor on another device, or keys of JAX
        raise UserError(f"{where} cannot become an array: {first_line(error)}") from error
    if array.dtype.names:
        raise UserError(
            f"{where} is a structured array: pass its fields as a frame, or a dict of arrays"
        )
    return to_native(array)


def to_native(array: np.ndarray) -> np.ndarray:
    """Returns numbers that JAX lacks or NumPy does not know, such as bfloat16, as ones it has."""
    if array.dtype.kind == "V" and jnp.issubdtype(array.dtype, jnp.floating):
        return array.astype(np.float32)
    if array.dtype.kind in "fc" and array.dtype.itemsize > {"f": 8, "c": 16}[array.dtype.kind]:
        return array.astype(np.float64 if array.dtype.kind == "f" else np.complex128)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def column_names(frame: Any, where: str) -> tuple[Any, ...]:
    """Returns the names of a frame's columns.

    Raises:
      UserError: two are equal.
    """
    names = tuple(frame.columns)
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{where} has several columns {name!r}: rename or drop them")
    return names


def frame_columns(x: Any) -> dict[str, tuple[str, ...]]:
    """Returns the columns of a frame, or of a dict's frames by name, that are named by texts.

    The name of an `x` that is no dict is empty.
    """
    frames = x if isinstance(x, Mapping) else {"": x}
    return {
        name: tuple(frame.columns)
        for name, frame in frames.items()
        if is_frame(frame) and all(isinstance(column, str) for column in frame.columns)
    }


def arrange_columns(frame: Any, names: Sequence[Any], where: str) -> Any:
    """Returns a frame with the columns of the training data, in their order.

    Raises:
      UserError: one is missing.
    """
    known = column_names(frame, where)
    for name in names:
        if name not in known:
            raise UserError(
                f"{where} has no column {name!r}, which the training data has (it has "
                f"{', '.join(map(repr, known))})"
            )
    return frame[list(names)]


def inputs_by_name(
    x: Any, name: str, columns: Mapping[str, Sequence[str]] = MappingProxyType({})
) -> dict[str, Any]:
    """Returns what a model is asked to predict from as arrays by name.

    Args:
      x: an array, list or frame of examples, or a dict of these by name.
      name: of the model's input, for an `x` without names.
      columns: by input, the names of the columns that a frame must have, in any order.

    Raises:
      UserError: it has no examples along axis 0, or arrays differ in their number.
    """
    arrays = {}
    for key, values in (x if isinstance(x, Mapping) else {name: x}).items():
        if isinstance(values, (list, tuple)):  # images may differ in size before the transforms
            arrays[key] = values
            continue
        if is_frame(values):
            if columns.get(key):
                values = arrange_columns(values, columns[key], key)
            arrays[key] = to_numbers(values, key)
            continue
        arrays[key] = to_array(values, key)
        if not arrays[key].ndim:
            raise UserError(
                f"predict takes examples along axis 0, not {values!r:.40}: for one example pass "
                f"[example]"
            )
        if arrays[key].dtype == object and _has_numbers(arrays[key]):
            arrays[key] = to_numbers(arrays[key], key)
    counts = {key: len(array) for key, array in arrays.items()}
    if not counts:
        raise UserError("there is nothing to predict: the dict has no arrays")
    if len(set(counts.values())) != 1:
        raise UserError(f"the arrays to predict from differ in length: {counts}")
    return arrays


def _has_numbers(array: np.ndarray) -> bool:
    """Whether an array of objects begins with what is neither a text nor an example."""
    return array.size > 0 and not isinstance(array.flat[0], (str, bytes, np.ndarray, list))


def is_frame(values: Any) -> bool:
    """Whether values are a data frame of pandas or Polars."""
    return hasattr(values, "columns") and hasattr(values, "shape")


def check_rows(x: Any, y: Any, names: Sequence[str] = ("x", "y")) -> None:
    """Raises a UserError if two arrays differ in length, or two frames in the order of rows."""
    for values, name in zip((x, y), names, strict=True):
        if hasattr(values, "toarray"):  # has no length
            raise UserError(f"{name} is a sparse matrix: pass {name}.toarray()")
    if hasattr(x, "__len__") and hasattr(y, "__len__") and len(x) != len(y):
        raise UserError(f"{names[0]} has {len(x)} examples, {names[1]} {len(y)}")
    left, right = (getattr(each, "index", None) for each in (x, y))
    if callable(left) or callable(right) or left is None or right is None:
        return
    if len(left) == len(right) and not left.equals(right) and set(left) == set(right):
        raise UserError(
            f"{names[0]} and {names[1]} have the same index in different orders: align them, as in "
            f"{names[1]} = {names[1]}.loc[{names[0]}.index]"
        )


@dataclass(frozen=True)
class ClassLabels:
    """Targets as class numbers."""

    ids: np.ndarray  # (examples,) int32; of several labels per example (examples, classes)
    names: tuple[str, ...] = ()  # of the classes, in the order of their numbers; (): numbers
    note: str = ""  # how the targets were read, unless they were integers already


def class_labels(
    values: Any, where: str, names: tuple[str, ...] | None = None
) -> ClassLabels | None:
    """Reads targets as classes, or returns None where they are real numbers.

    Args:
      values: integers, booleans or texts (examples,) or (examples, 1), or one-hot rows (examples,
        classes).
      where: what the targets are called in messages.
      names: of the classes where they are known already, as those of the training split.

    Raises:
      UserError: a label is missing or, with `names`, unknown; or rows hold several labels.
    """
    # NumPy would turn the numbers of a mixed list into texts.
    mixed = isinstance(values, (list, tuple)) and any(isinstance(v, str) for v in values)
    array = np.asarray(values, object) if mixed else to_array(values, where)
    column = array.ndim == 2 and array.shape[1] == 1
    note = f"{where} of shape {array.shape} read as one target per example" if column else ""
    array = array[:, 0] if column else array
    if (
        array.dtype.kind in "OUS"
        and array.ndim == 1
        and any(isinstance(v, (str, bytes)) for v in array)
    ):
        return _from_texts(array, where, names)
    array = to_numbers(array if column or array.ndim == 1 else values, where)
    if array.dtype.kind == "b" and array.ndim == 1:
        return ClassLabels(
            array.astype(np.int32), (), f"{where} read as classes 0 and 1 (False, True)"
        )
    if array.dtype.kind == "b" and array.ndim == 2 and not _is_one_hot(array):
        array = array.astype(np.int32)
    if array.ndim == 2 and _is_one_hot(array):
        note = f"{where} of shape {array.shape} read as one-hot rows of {array.shape[1]} classes"
        return ClassLabels(array.argmax(1).astype(np.int32), (), note)
    if array.dtype.kind not in "iub":
        return None
    if array.ndim == 2:
        raise UserError(
            f"{where} holds integers of shape {array.shape} that are no one-hot rows: pass one "
            f"class per example, floats for regression, or task=MultiLabelClassification() for "
            f"several labels"
        )
    return ClassLabels(array.astype(np.int32), (), note)


def is_label_lists(values: Any) -> bool:
    """Whether values are a list of lists of texts, as several labels per example are."""
    rows = values if isinstance(values, (list, tuple)) else ()
    return any(isinstance(row, (list, tuple, set, frozenset)) for row in rows) and all(
        isinstance(row, (list, tuple, set, frozenset)) and all(isinstance(x, str) for x in row)
        for row in rows
    )


def multi_labels(values: Any, where: str, names: tuple[str, ...] | None = None) -> ClassLabels:
    """Reads targets as labels that are 0 or 1 for each class, (examples, classes) int32.

    Args:
      values: a list of lists of class names, any number for each example; or labels (examples,
        classes).
      where: what the targets are called in messages.
      names: of the classes where they are known already, as those of the training split.

    Raises:
      UserError: the targets are neither, or, with `names`, a class is unknown.
    """
    if not is_label_lists(values):
        array = to_numbers(values, where)
        if array.ndim != 2:
            raise UserError(
                f"{where} has shape {array.shape}, where several labels per example are rows of 0 "
                f"and 1 (examples, classes), or a list of lists of class names"
            )
        return ClassLabels(array.astype(np.int32) if array.dtype.kind == "b" else array)
    known = names or tuple(sorted({name for row in values for name in row}))
    ids = hot_rows(values, known, where)
    shown = ", ".join(known[:5]) + (", ..." if len(known) > 5 else "")
    return ClassLabels(ids, known, f"{where} read as labels of {len(known)} classes: {shown}")


def binary_label(text: str, where: str, row: int) -> int:
    """Returns the 0 or 1 of a field in a column of one class.

    Args:
      text: the field.
      where: file and column, for messages.
      row: its row, from 1.

    Raises:
      UserError: it is neither.
    """
    value = {"false": 0, "true": 1}.get(text.lower(), number_of(text))
    if value not in (0, 1):
        problem = f"holds {text!r}" if text else "has no label"
        raise UserError(
            f"{where} {problem} in row {row}, where the column of a class among several holds 0 or "
            f"1: correct it"
        )
    return int(value)


def hot_rows(rows: Sequence[Iterable[str]], names: Sequence[str], where: str) -> np.ndarray:
    """Returns 1 for each class that a row names, (rows, classes) int32.

    Raises:
      UserError: a row names an unknown class.
    """
    number = {name: index for index, name in enumerate(names)}
    found = np.zeros((len(rows), len(names)), np.int32)
    for index, row in enumerate(rows):
        for name in row:
            if name not in number:
                raise UserError(
                    f"{where} holds the class {name!r}, unknown in training{nearest(name, names)}"
                )
            found[index, number[name]] = 1
    return found


def _from_texts(array: np.ndarray, where: str, names: tuple[str, ...] | None) -> ClassLabels:
    texts = [v.decode() if isinstance(v, bytes) else v for v in array.tolist()]
    texts = [str(v) if isinstance(v, str) else v for v in texts]
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(f"{where} holds texts, and {text!r} at row {row}")
    known = names or tuple(sorted(set(texts)))
    numbers = {name: number for number, name in enumerate(known)}
    for row, text in enumerate(texts):
        if text not in numbers:
            raise UserError(
                f"{where} holds the class {text!r} at row {row}, unknown in training"
                f"{nearest(text, known)}"
            )
    shown = ", ".join(known[:5]) + (", ..." if len(known) > 5 else "")
    ids = np.array([numbers[text] for text in texts], np.int32)
    return ClassLabels(ids, known, f"{where} read as {len(known)} classes: {shown}")


def _is_one_hot(array: np.ndarray) -> bool:
    """Whether each row has a single 1 among zeros."""
    binary = bool(((array == 0) | (array == 1)).all())
    return binary and array.shape[1] > 1 and bool((array.sum(1) == 1).all())


def _from_objects(array: np.ndarray, where: str) -> np.ndarray:
    """Converts an array of Python numbers; names the first element that is none."""
    if array.dtype.kind in "Mm":
        raise UserError(f"{where} holds dates: convert them to numbers")
    for place, value in np.ndenumerate(array):
        if isinstance(value, (str, bytes)):
            raise UserError(
                f"{where} holds the text {_plain(value)!r:.40} at row {place[0]}: encode it as a "
                f"number"
            )
        if not isinstance(value, (bool, int, float, complex, np.generic)):
            if value is None or type(value).__name__ == "NAType":
                raise UserError(f"{where} holds a missing value at row {place[0]}: fill or drop it")
            raise UserError(
                f"{where} holds a {type(value).__name__} at row {place[0]}: convert it to a number"
            )
    return np.array(array.tolist())


def _plain(text: str | bytes) -> str:
    """A text of Python, as NumPy's shows itself with its type."""
    return str(text) if isinstance(text, str) else text.decode(errors="replace")


def _check_range(array: np.ndarray, where: str) -> np.ndarray:
    """Raises a UserError for numbers that would change silently in 32 bits."""
    if array.dtype.kind in "iu" and array.dtype.itemsize == 8 and array.size:
        wrong = (array > np.iinfo(np.int32).max) | (array < np.iinfo(np.int32).min)
    elif array.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            wrong = ~(np.abs(array) <= np.finfo(np.float32).max)
    else:
        return array
    if wrong.any():
        row, *_ = place = tuple(np.argwhere(wrong)[0])
        remedy = (
            "fill or drop it"
            if not np.isfinite(array[place])
            else "JAX computes in 32 bits, so scale it"
        )
        raise UserError(f"{where} holds {array[place]} at row {row}: {remedy}")
    return array
