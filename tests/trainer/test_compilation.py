"""Compiled programs are cached, readable by their owner alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

from jdl.trainer.compilation_cache import MIN_COMPILE_SECONDS

PROGRAM = """
import json, jax, jax.numpy as jnp, numpy as np
from jdl.trainer.compilation_cache import enable_compilation_cache

jax.jit(lambda x: x + 1)(1.0)  # what was compiled before does not keep it from working
directory, events = enable_compilation_cache(), []
least = jax.config.jax_persistent_cache_min_compile_time_secs
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)  # all, on any machine
x = jax.device_put(np.arange(10, dtype=np.float32))
jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
value = jax.jit(lambda x: jnp.sin(x).sum())(x)
jax.block_until_ready(value)
hits = events.count("/jax/compilation_cache/cache_hits")
value = np.asarray(value).item()
found = {"directory": directory and str(directory), "hits": hits, "value": value, "least": least}
print(json.dumps(found))
"""


def run(home: Path, **settings: str) -> dict:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    command = [sys.executable, "-c", PROGRAM]
    env = {**kept, "XDG_CACHE_HOME": str(home), **settings}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return {**json.loads(done.stdout.splitlines()[-1]), "errors": done.stderr}


def test_a_second_process_loads_what_the_first_compiled_unless_it_is_damaged(tmp_path: Path):
    first = run(tmp_path)
    directory = Path(first["directory"])
    assert directory.stat().st_mode & 0o777 == 0o700
    assert first["hits"] == 0
    assert first["least"] == MIN_COMPILE_SECONDS
    second = run(tmp_path)
    assert second["hits"] == 1
    for path in directory.iterdir():
        path.write_bytes(path.read_bytes()[:100])
    third = run(tmp_path)
    assert first["value"] == second["value"] == third["value"]


def test_a_directory_that_others_can_write_is_not_used(tmp_path: Path):
    directory = tmp_path / "jdl" / "compiled"
    directory.mkdir(parents=True)
    directory.chmod(0o777)
    found = run(tmp_path)
    assert found["directory"] is None
    assert "others have access" in found["errors"]
    assert not list(directory.iterdir())


def test_what_the_user_set_for_jax_holds(tmp_path: Path):
    home = tmp_path / "home"
    own = run(home, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "other"))
    none = run(home, JAX_ENABLE_COMPILATION_CACHE="false")
    assert own["directory"] is none["directory"] is None
    assert not home.exists()


def test_where_no_directory_can_be_made_nothing_is_kept(tmp_path: Path):
    home = tmp_path / "file"
    home.write_text("not a directory")
    assert run(home)["directory"] is None
