"""`jdl embed`."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from jdl.cli.arguments import OwnFile, warn_if_unfinished
from jdl.errors import UserError
from jdl.files import to_json

MODEL = "a run directory, or a directory with config.json, model.safetensors and tokenizer.json."


def embed(
    model: Annotated[Positional[Path], arg(metavar="MODEL", help=MODEL)],
    files: Annotated[
        Positional[tuple[Path, ...]], arg(metavar="FILE...", help_behavior_hint="(at least one)")
    ],
    /,
    output: Path | None = None,
    query: str | None = None,
    top: int = 5,
    layer: str | None = None,
    experiment: OwnFile = None,
) -> None:
    """Embed texts, images or rows of tables as vectors, or search among them.

    The vector of an example is what the last layer of a run's model reads, in evaluation mode, or
    of a pretrained BERT the mean over the tokens; its length is 1. Files are read like those of the
    run's data set; for a BERT they are texts, or tables with a column `text`. Prints a line of JSON
    for each example, with a query only the nearest ones.

    Args:
        files: to embed, or folders of such files.
        output: write the vectors to this NPZ file instead, as `embedding`, with `files` and `rows`.
        query: a text; print the examples most similar to it, by the cosine of their vectors.
        top: number of examples to print for a query.
        layer: of a run, the module whose input is the vector, such as logits.
    """
    from jdl.inference import embed as library
    from jdl.inference.predict import expand
    from jdl.pretrained.config import CONFIG
    from jdl.trainer.opening import restore_run
    from jdl.trainer.record import read_run

    if not files:
        raise UserError("embed needs at least one FILE (see `jdl embed --help`)")
    if top < 1:
        raise UserError(f"--top must be at least 1, not {top}")
    if output is not None and output.suffix != ".npz":
        raise UserError(f"--output {output} must end in .npz")
    if (model / CONFIG).is_file():
        if layer or experiment:
            raise UserError("--layer and --experiment are for runs, not for a pretrained model")
        embedded = library.encoder_embed(library.load_encoder(model))
    else:
        run = restore_run(model, read_run(model, experiment).experiment)
        warn_if_unfinished(model, run)
        embedded = library.run_embed(run, layer)
    rows, vectors = library.embed_files(embedded, expand(files))
    if output is not None:
        library.write_embeddings(output, rows, vectors)
        print(f"{output}: {len(vectors)} vectors of {vectors.shape[1]}")
    if query is not None:
        found = library.embed_text(embedded, query)
        for index, similarity in library.nearest_rows(found, vectors, top):
            print(to_json({**rows[index], "similarity": round(similarity, 6)}))
    elif output is None:
        for row, vector in zip(rows, vectors, strict=True):
            print(to_json({**row, "embedding": [round(float(x), 6) for x in vector]}))
