"""`jdl sample`."""

from pathlib import Path

from jdl.cli.arguments import OwnFile, RunDirectory, warn_if_unfinished
from jdl.errors import UserError


def sample(
    directory: RunDirectory,
    /,
    out: Path,
    count: int = 16,
    seed: int = 0,
    split: str | None = None,
    label: str | None = None,
    edit: Path | None = None,
    mask: Path | None = None,
    strength: float | None = None,
    experiment: OwnFile = None,
) -> None:
    """Sample images, texts or sounds with the model of a run into files; prints their paths.

    A generative model draws them, with the same seed the same ones, whatever their number. Other
    models predict the first examples of a split. A language model continues a line break. With
    --edit a diffusion model changes an image: all of it, or with --mask a part.

    Args:
        out: folder for the files, created if it does not exist.
        count: number of samples.
        seed: of the random numbers.
        split: whose examples a conditional model reads (default: validation, or train without it).
        label: class of the samples, its name or number, where the task has classes.
        edit: change this image, of the size of the run's images.
        mask: image of the same size, white where pixels are drawn anew; the others stay exactly.
        strength: of the change, above 0 and at most 1 (default: 0.5, or 1 with a mask).
    """
    import jax

    from jdl.inference.edit import read_prompt
    from jdl.inference.sample import class_number, write_samples
    from jdl.trainer.opening import restore_run
    from jdl.trainer.record import read_run

    if edit is None and (mask or strength is not None):
        raise UserError("--mask and --strength change an image: name it with --edit IMAGE")
    if edit is not None and label is not None:
        raise UserError("an image is edited without a class: leave out --label, or --edit")
    run = restore_run(directory, read_run(directory, experiment).experiment)
    warn_if_unfinished(directory, run)
    key = jax.random.key(seed)
    if edit is None:
        names = list(run.experiment.data.output_names())
        number = None if label is None else class_number(label, names)
        media = run.sample(count, key, split=split, label=number)
    else:
        media = run.edit(*read_prompt(run, edit, mask), strength=strength, count=count, key=key)
    for path in write_samples(media, out):
        print(path, flush=True)
