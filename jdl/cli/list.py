"""`jdl list`."""

from jdl.errors import UserError


def list_experiments() -> None:
    """List the experiments: title, data, what brings the data, expected result and time."""
    from jdl.config.experiment_file import available, documentation, expectation, load
    from jdl.report.comparison import aligned

    rows = []
    for name, path in available().items():
        try:
            data = load(path).experiment.data
            source, needs = data.full_name(), data.needs() or "-"
        except UserError as error:
            source, needs = f"({error})", "-"
        expected = expectation(path)
        result = f"{expected.metric} {expected.mean}" if expected else "-"
        seconds = f"{expected.seconds:g} s" if expected else "-"
        rows.append((name, documentation(path).split("\n")[0], source, needs, result, seconds))
    print(aligned(rows))
