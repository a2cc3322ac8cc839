"""`jdl list`."""

from jdl.errors import UserError


def list_experiments() -> None:
    """List the experiments: title, data, expected result and time."""
    from jdl.config.experiment_file import available, documentation, expectation, load
    from jdl.report.comparison import aligned

    rows = []
    for name, path in available().items():
        try:
            data = load(path).experiment.data.full_name()
        except UserError as error:
            data = f"({error})"
        expected = expectation(path)
        result = f"{expected.metric} {expected.mean}" if expected else "-"
        seconds = f"{expected.seconds:g} s" if expected else "-"
        rows.append((name, documentation(path).split("\n")[0], data, result, seconds))
    print(aligned(rows))
