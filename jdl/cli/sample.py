"""`jdl sample`."""

from pathlib import Path

from jdl.cli.arguments import OwnFile, RunDirectory, warn_if_unfinished


def sample(
    directory: RunDirectory,
    /,
    out: Path,
    count: int = 16,
    seed: int = 0,
    split: str | None = None,
    experiment: OwnFile = None,
) -> None:
    """Sample images, texts or sounds with the model of a run into files; prints their paths.

    A generative model draws them, with the same seed the same ones, whatever their number. Other
    models predict the first examples of a split. A language model continues a line break.

    Args:
        out: folder for the files, created if it does not exist.
        count: number of samples.
        seed: of the random numbers.
        split: whose examples a conditional model reads (default: validation, or train without it).
    """
    import jax

    from jdl.inference.sample import write_samples
    from jdl.trainer.opening import restore_run
    from jdl.trainer.record import read_run

    run = restore_run(directory, read_run(directory, experiment).experiment)
    warn_if_unfinished(directory, run)
    media = run.sample(count, jax.random.key(seed), split=split)
    for path in write_samples(media, out):
        print(path, flush=True)
