"""Scores of recognizers of speech on sounds that are louder, softer, noisy or silent.

    python -m benchmarks.noise RUN [RUN ...]

A row for each change of the test split: gains in dB, clipped at full scale; white noise at
signal-to-noise ratios in dB; and silence in place of the sound. The score is `accuracy` of runs
that classify, and `wer` of those that transcribe.
"""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jdl.audio import add_noise
from jdl.audit.groups import read_arrays
from jdl.tasks import CTC
from jdl.trainer.opening import restore_run
from jdl.trainer.record import read_run
from jdl.trainer.run import Run

Arrays = Mapping[str, np.ndarray]
FULL = 32767  # full scale of 16 bits


def gain(db: float, arrays: Arrays) -> np.ndarray:
    """Returns the sounds at another level."""
    return np.clip(arrays["audio"] * 10 ** (db / 20), -FULL, FULL)


def noise(db: float, arrays: Arrays) -> np.ndarray:
    """Returns the sounds with white noise of a power `db` below their own."""
    x = jnp.asarray(arrays["audio"], jnp.float32)
    mask = jnp.asarray(arrays.get("audio_mask", np.ones(x.shape, bool)))
    return np.asarray(add_noise(x, jax.random.normal(jax.random.key(0), x.shape), db, mask))


def silence(arrays: Arrays) -> np.ndarray:
    """Returns zeros."""
    return np.zeros_like(arrays["audio"])


def changes() -> dict[str, Callable[[Arrays], np.ndarray]]:
    """Returns the changes by name."""
    gains = {f"{db:+d} dB": lambda x, db=db: gain(db, x) for db in (-30, -20, -10, 0, 10, 20)}
    noises = {f"noise at {db} dB": lambda x, db=db: noise(db, x) for db in (30, 20, 10, 5)}
    return {**gains, **noises, "silence": silence}


def score(run: Run, arrays: Arrays, audio: np.ndarray) -> tuple[str, float]:
    """Returns name and value of a run's score on changed sounds."""
    own = arrays["audio"].dtype
    changed = {**arrays, "audio": np.clip(np.round(audio), -FULL, FULL).astype(own)}
    prediction = run.predict_rows(changed)
    task = run.experiment.task
    if isinstance(task, CTC):
        found = task.compute_metrics(prediction, changed, run.experiment.data)
        return "wer", found.metrics["wer"]
    return "accuracy", float((prediction.argmax(-1) == arrays["label"]).mean())


def main() -> None:
    """Prints a row for each run and change."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    for directory in parser.parse_args().runs:
        run = restore_run(directory, read_run(directory).experiment)
        arrays = read_arrays(run, "test")
        for name, change in changes().items():
            metric, value = score(run, arrays, change(arrays))
            print(f"{directory.name:24} {name:16} {metric} {value:.4f}", flush=True)


if __name__ == "__main__":
    main()
