"""`jdl generate`."""

from jdl.cli.arguments import OwnFile, RunDirectory, warn_if_unfinished

SEPARATOR = "-" * 15
"""The line between samples."""


def generate(
    directory: RunDirectory,
    /,
    prompt: str | None = None,
    max_new_tokens: int = 200,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    samples: int = 1,
    experiment: OwnFile = None,
) -> None:
    """Generate text with the language model of a run, printed token by token.

    Without a prompt, generation starts after a line break, or after the tokenizer's first token if
    it has no line break. When the model's context is full, the model rereads the last half of it.
    Of several samples only the first is printed as it is generated, the others at the end.

    Args:
        prompt: text to continue; printed too.
        max_new_tokens: number of tokens to generate.
        temperature: divides the logits; 0 is greedy decoding.
        top_k: sample among this many most likely tokens.
        top_p: sample among the most likely tokens that together have this probability.
        seed: of the sampling.
        samples: number of texts, separated by a line of dashes.
    """
    from jdl.decoding import Sampling
    from jdl.inference.generate import generate, open_for_generation
    from jdl.trainer.record import read_run

    sampling = Sampling(temperature, top_k, top_p)
    recorded = read_run(directory, experiment)
    run, tokenizer = open_for_generation(directory, recorded.experiment)
    warn_if_unfinished(directory, run)
    pieces = []
    for piece in generate(run, tokenizer, prompt, max_new_tokens, sampling, seed, samples):
        first = piece[0] if pieces else (prompt or "") + piece[0]
        print(first, end="", flush=True)
        pieces.append(piece)
    print()
    for others in list(zip(*pieces, strict=True))[1:]:
        print(f"{SEPARATOR}\n{prompt or ''}{''.join(others)}")
