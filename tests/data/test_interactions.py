"""Choices of users: what is held out, what is seen, who is never seen."""

import logging

import numpy as np
import pytest

from jdl.data import Interactions
from jdl.errors import UserError


def write(tmp_path, lines):
    path = tmp_path / "choices.csv"
    path.write_text("\n".join(["user,item,time", *lines]) + "\n")
    return str(path)


def choices():
    rng = np.random.default_rng(0)
    found = []
    for user in range(12):
        items = rng.choice(20, 8, replace=False)
        found += [f"u{user},i{item:02},{10 * at + user}" for at, item in enumerate(items)]
    return found


def all_of(source):
    return [source[index] for index in range(len(source))]


def test_the_last_choice_of_each_user_is_held_out(tmp_path):
    lines = choices()
    data = Interactions(write(tmp_path, lines[::-1]), length=5, num_negatives=6)
    splits, names = data.splits(), data.fit()
    assert {name: len(part) for name, part in splits.items()} == {
        "train": 72, "validation": 12, "test": 12,
    }  # fmt: skip
    for example in all_of(splits["test"]):
        user = names["users"][example["user"] - 1]
        own = [line.split(",")[1] for line in lines if line.split(",")[0] == user]
        assert names["items"][example["item"] - 1] == own[-1]
        assert [names["items"][item - 1] for item in example["history"]] == own[-6:-1]
        seen = {names["items"][item - 1] for item in np.flatnonzero(example["seen"])}
        assert seen == set(own[:-1])
        chosen = {names["items"][item - 1] for item in example["negatives"]}
        assert len(chosen) == 6
        assert not chosen & set(own)
    first = splits["train"][0]
    np.testing.assert_array_equal(first["history"], np.zeros(5))
    assert first["seen"].sum() == 5  # the other training choices: none of them is a negative


def test_a_temporal_split_has_one_cut_for_all(tmp_path, caplog):
    lines = [*choices(), "late,i01,1000", "late,i02,1001", "u1,new,1002", "u2,new,1003"]
    data = Interactions(
        write(tmp_path, lines), protocol="temporal", num_negatives=5, validation_fraction=0.0
    )
    with caplog.at_level(logging.WARNING):
        splits = data.splits()
    times = sorted(int(line.rsplit(",", 1)[1]) for line in lines)
    cut = times[80]
    assert len(splits["train"]) == sum(time < cut for time in times)
    assert max(len(splits["test"]), 1) == len({int(x["user"]) for x in all_of(splits["test"])})
    assert "of users and" in caplog.text
    assert "without a training choice" in caplog.text
    users = data.fit()["users"]
    assert users.index("late") + 1 not in {int(x["user"]) for x in all_of(splits["test"])}


def test_a_repeated_choice_counts_once(tmp_path, caplog):
    lines = [*choices(), *(f"u0,i{item:02},999" for item in range(3))]
    before = {line.split(",")[1] for line in choices() if line.startswith("u0,")}
    repeated = sum(f"i{item:02}" in before for item in range(3))
    with caplog.at_level(logging.WARNING):
        splits = Interactions(write(tmp_path, lines), num_negatives=5).splits()
    assert sum(map(len, splits.values())) == 96 + 3 - repeated
    assert f"{repeated} rows repeat a choice" in caplog.text


def test_predicting_for_who_was_in_training(tmp_path):
    data = Interactions(write(tmp_path, choices()), length=4, num_negatives=5)
    data = data.with_fitted(data.fit())
    new = tmp_path / "new.csv"
    new.write_text("user,item,time\nu3,i05,2\nu3,i07,1\nu1,i00,5\n")
    found = data.reader()(new)
    names = data.fitted()
    assert [names["users"][user - 1] for user in found["user"]] == ["u1", "u3"]
    shown = [names["items"][item - 1] for item in found["history"][1] if item]
    assert shown == ["i07", "i05"]
    assert found["seen"].sum() == 3
    assert data.example_names(new) == {"user": ["u1", "u3"]}
    for line, column in (("u3,x9,1", "item"), ("who,i05,1", "user")):
        new.write_text(f"user,item,time\n{line}\n")
        with pytest.raises(UserError, match=f"column '{column}' holds .* not in the data"):
            data.reader()(new)


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        (["u1,i1,soon"], {}, "column 'time' holds no times"),
        (["u1,,3"], {}, "column 'item' has no value in row 1"),
        (["u1,i1,3", "u1,i2,"], {}, "column 'time' has no value in row 2"),
        (choices(), {"num_negatives": 15}, "all but 12 of 20 items, fewer than"),
        (["u1,i1,3"], {}, "no choice in split"),
        (choices(), {"user": "usr"}, r"no column 'usr' .*did you mean 'user'\?"),
        (choices(), {"user": "item"}, "three different columns"),
        (choices(), {"length": 0}, "data.length must be at least 1"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, lines, options, message):
    with pytest.raises(UserError, match=message) as caught:
        Interactions(write(tmp_path, lines), **{"num_negatives": 5, **options}).splits()
    assert len(str(caught.value).splitlines()) == 1
