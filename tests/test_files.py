"""Files of a run directory: strict JSON, typed records, rows that can be read while written."""

import dataclasses
import json
import math

import pytest

from jdl.errors import UserError
from jdl.files import (
    CheckpointMetadata,
    ExperimentRecord,
    MetricsLog,
    RunDirectory,
    json_value,
    read_rows,
    to_json,
    truncate_rows,
    write_json,
)

NUMBERS = {"nan": math.nan, "most": math.inf, "least": -math.inf, "half": 0.5, "one": 1}


def strict(text):
    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_json_is_strict_and_null_stands_for_numbers_that_are_not_finite():
    value = {"metrics": {"train": NUMBERS, "test": [math.nan, (1, math.inf)]}, "text": "NaN"}
    finite = {"nan": None, "most": None, "least": None, "half": 0.5, "one": 1}
    expected = {"metrics": {"train": finite, "test": [None, [1, None]]}, "text": "NaN"}
    assert strict(to_json(value)) == json_value(value) == expected


def test_rows_and_results_are_strict_json_and_are_read_back_as_nan(tmp_path):
    directory = RunDirectory(tmp_path)
    row = {"step": 1, "split": "train", "metrics": {"loss": math.nan, "accuracy": 0.5}}
    log = MetricsLog(directory.metrics)
    log.append(row)
    log.append({**row, "step": 2, "timing": {"seconds": None}})
    log.close()
    for _ in range(2):
        (first, *_) = directory.metrics.read_text().splitlines()
        assert strict(first)["metrics"] == {"loss": None, "accuracy": 0.5}
        found = read_rows(directory.metrics)[0]
        assert math.isnan(found["metrics"]["loss"])
        truncate_rows(directory.metrics, 1)
    assert len(read_rows(directory.metrics)) == 1
    assert directory.read_result() is None
    metrics = {"test": {"loss": math.inf, "accuracy": 0.5}}
    write_json(directory.result, {"metrics": metrics, "git_commit": None})
    assert strict(directory.result.read_text())["metrics"]["test"]["loss"] is None
    result = directory.read_result()
    assert result is not None
    assert result["git_commit"] is None
    assert math.isnan(result["metrics"]["test"]["loss"])


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    directory = RunDirectory(tmp_path)
    directory.result.write_text('{"step": ')
    with pytest.raises(UserError, match=r"result\.json cannot be read"):
        directory.read_result()


def test_metadata_of_a_checkpoint_is_strict_json_and_keeps_every_number():
    sums = {"loss": [math.nan, 3.0], "most": [-math.inf, math.inf]}
    metadata = CheckpointMetadata(
        step=3,
        total_steps=9,
        hooks={"Rows 0": {"sums": sums}, "A 0": None},
        pending=sums,
        seconds=2,
    )
    text = json.dumps(metadata.to_json(), allow_nan=False)
    found = CheckpointMetadata.from_json(strict(text))
    assert repr(found) == repr(metadata)  # by text, since NaN is unequal to itself


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"position": 4}, "meta.json has the unknown key 'position': another version of jdl"),
        ({"hooks": None}, "meta.json: 'hooks' must not be None"),
        ({"step": "3"}, "meta.json: 'step' must not be '3'"),
        ({"best_step": 1.5}, "meta.json: 'best_step' must not be 1.5"),
    ],
)
def test_metadata_that_is_not_understood_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        CheckpointMetadata.from_json({**CheckpointMetadata(step=3).to_json(), **change})


def test_metadata_without_a_key_is_refused():
    for field in dataclasses.fields(CheckpointMetadata):
        value = CheckpointMetadata(step=3).to_json()
        del value[field.name]
        with pytest.raises(UserError, match=f"lacks the key '{field.name}'"):
            CheckpointMetadata.from_json(value)
    with pytest.raises(UserError, match="no JSON object"):
        CheckpointMetadata.from_json([3])


def test_a_directory_without_a_record_is_no_run_directory(tmp_path):
    directory = RunDirectory(tmp_path)
    with pytest.raises(UserError, match=r"no run directory \(it has no experiment\.json\)"):
        directory.read_experiment()
    record = ExperimentRecord(experiment="digits", total_steps=4, fields={"seed": 0})
    write_json(directory.experiment, record.to_json())
    assert directory.read_experiment() == record
    write_json(directory.experiment, {**record.to_json(), "runtime": {}})
    with pytest.raises(UserError, match=r"experiment\.json has the unknown key 'runtime'"):
        directory.read_experiment()
