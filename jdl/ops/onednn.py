"""oneDNN's convolutions, where the extra `onednn` and a C++ compiler are installed.

The binding `onednn.cc` is a foreign function of XLA (`jax.ffi`). It is compiled when a convolution
is first lowered, and kept in the user's cache. `JDL_ONEDNN=0` turns it off.
"""

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
from pathlib import Path

import jax
import numpy as np

from jdl.caches import private_cache

TARGET = "jdl_onednn_convolution"
"""The name by which programs call it."""

NAME = "onednn-cpu-gomp"
"""The distribution that holds oneDNN's library."""

SOURCE = Path(__file__).with_name("onednn.cc")

BITS = {"float32": 32, "bfloat16": 16}

_log = logging.getLogger(__name__)


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
        found = ctypes.CDLL(str(_build(shared)))
        jax.ffi.register_ffi_target(TARGET, jax.ffi.pycapsule(found.JdlConvolve), platform="cpu")
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", None) or error
        _log.warning("convolutions run without oneDNN, whose binding fails: %s", reason)
        return None
    found.JdlSupports.restype = ctypes.c_bool
    return found


def version() -> str | None:
    """Returns the version of oneDNN that convolutions use, or None if it is not installed."""
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
            options = ["-O2", "-std=c++17", "-w", "-shared", "-fPIC"]
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
