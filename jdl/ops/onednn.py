"""oneDNN's convolutions and products, where the extra `onednn` and a C++ compiler are installed.

The binding `onednn.cc` has foreign functions of XLA (`jax.ffi`). It is compiled when an operation
that it serves is first lowered, and kept in the user's cache. `JDL_ONEDNN=0` turns it off.
"""

import contextlib
import ctypes
import functools
import hashlib
import importlib.metadata
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jdl.caches import private_cache

CONVOLUTION, PRODUCT = "jdl_onednn_convolution", "jdl_onednn_product"
LSTM, LSTM_GRADIENT = "jdl_onednn_lstm", "jdl_onednn_lstm_gradient"
"""The names by which programs call its functions."""

FUNCTIONS = {
    CONVOLUTION: "JdlConvolve",
    PRODUCT: "JdlMultiply",
    LSTM: "JdlLstm",
    LSTM_GRADIENT: "JdlLstmGradient",
}
"""Their names in `onednn.cc`."""

NAME = "onednn-cpu-gomp"
"""The distribution that holds oneDNN's library."""

SOURCE = Path(__file__).with_name("onednn.cc")

BITS = {"float32": 32, "bfloat16": 16}

_log = logging.getLogger(__name__)


def is_alone(module: Any) -> bool:
    """Returns whether a program is for one CPU device of this process.

    XLA cannot shard a foreign function, and an exported program must run where oneDNN is missing.

    Args:
      module: the module context of a lowering rule.
    """
    context = module.axis_context
    devices = getattr(context, "num_devices", None)
    alone = devices == 1 and tuple(module.platforms) == ("cpu",)
    return alone and not module.lowering_parameters.for_export


def supports(part: int, dtype: np.dtype, spec: np.ndarray) -> bool:
    """Returns whether oneDNN is installed and has a convolution on this processor.

    Args:
      part: 0 forward, 1 input gradient, 2 kernel gradient.
      dtype: of both operands and the result.
      spec: 17 numbers, in the order of `MakePlan` in `onednn.cc`.
    """
    found, bits = library(), BITS.get(dtype.name)
    if found is None or bits is None:
        return False
    numbers = (ctypes.c_int64 * len(spec))(*map(int, spec))
    return bool(found.JdlSupports(ctypes.c_int64(part), ctypes.c_int64(bits), numbers))


@functools.cache
def library() -> ctypes.CDLL | None:
    """Compiles the binding once per version of jaxlib, loads it and registers it with XLA.

    Returns:
      The library, or None where the extra `onednn` is not installed or the binding cannot be
      built, with a logged reason.
    """
    shared = _shared() if version() else None
    if shared is None:
        return None
    try:
        path = _build(shared)
        with _passive_threads():
            found = ctypes.CDLL(str(path))
        for name, function in FUNCTIONS.items():
            handler = jax.ffi.pycapsule(getattr(found, function))
            jax.ffi.register_ffi_target(name, handler, platform="cpu")
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", None) or error
        _log.warning(
            "convolutions and products run without oneDNN, whose binding fails: %s", reason
        )
        return None
    found.JdlSupports.restype = ctypes.c_bool
    return found


@contextlib.contextmanager
def _passive_threads() -> Iterator[None]:
    """Has OpenMP's threads wait for about 100 us and then sleep, so that XLA's threads compute.

    OpenMP reads these variables when it is loaded; what the user has set stays.
    """
    wanted = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "2000"}
    added = {} if wanted.keys() & os.environ.keys() else wanted
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def version() -> str | None:
    """Returns the version of oneDNN that operations use, or None if it is not installed."""
    if os.environ.get("JDL_ONEDNN") == "0" or platform.machine() != "x86_64":
        return None
    return importlib.metadata.version(NAME) if _shared() else None


def _shared() -> Path | None:
    """Returns the path of oneDNN's library, if it is installed."""
    try:
        files = importlib.metadata.files(NAME) or ()
    except importlib.metadata.PackageNotFoundError:
        return None
    found = next((file for file in files if file.name == "libdnnl.so.3"), None)
    path = Path(str(found.locate())).resolve() if found else None
    return path if path is not None and path.exists() else None


def _build(shared: Path) -> Path:
    """Returns the compiled binding, from the cache where it has been built before.

    Raises:
      OSError: there is no compiler, or no private cache.
      subprocess.CalledProcessError: it does not compile.
    """
    interface = importlib.metadata.version("jaxlib")  # whose headers are compiled
    key = f"{SOURCE.read_text()} {shared} {shared.stat().st_size} {interface}"
    cache = private_cache("onednn", "bindings of oneDNN")
    if cache is None:
        raise OSError("there is no private cache for it")
    path = cache / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.so"
    if not path.exists():
        compiler = shutil.which(os.environ.get("CXX") or "c++") or shutil.which("g++")
        if compiler is None:
            raise OSError("no C++ compiler is installed (c++, g++, or the one that CXX names)")
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            new = Path(folder) / path.name
            options = ["-O3", "-std=c++17", "-w", "-shared", "-fPIC"]
            include, libraries = (
                f"-I{jax.ffi.include_dir()}",
                [shared, f"-Wl,-rpath,{shared.parent}"],
            )
            subprocess.run(
                [compiler, *options, include, SOURCE, "-o", new, *libraries],
                check=True,
                capture_output=True,
                text=True,
            )
            os.replace(new, path)
    return path
