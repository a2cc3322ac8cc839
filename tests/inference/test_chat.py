"""Chat: the template, a loss of answers alone, and answers that remember."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jdl
from jdl.cli.main import main
from jdl.data import BPE, Arrays, Bytes, ChatFile, Chats, ChatTemplate, StandardLibraryChats, stdlib
from jdl.data.tokenizers import BOS, EOS
from jdl.decoding import Sampling
from jdl.inference.chat import Conversation
from jdl.models import GPT
from jdl.optimizers import Adam
from jdl.tasks import LanguageModeling

TALKS = [
    [("user", "my name is " + name), ("assistant", "hello " + name), ("user", "who am I?"),
     ("assistant", name)]
    for name in ("Ann", "Bob")
]  # fmt: skip
GREEDY = Sampling(0.0)


def lines(talks):
    rows = [[{"role": role, "content": text} for role, text in talk] for talk in talks]
    return "\n".join(json.dumps({"messages": row}) for row in rows)


def chats(path, **changes):
    plain = ChatFile(str(path), test_fraction=0, validation_fraction=0)
    return Chats(plain, **{"encoding": BPE(300), "length": 64, **changes})


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("chat") / "talks.jsonl"
    path.write_text(lines(TALKS * 8) + "\n\n")
    return path


@pytest.fixture(scope="module")
def run(file):
    """A model that has learned both conversations by heart."""
    experiment = jdl.Experiment(
        model=GPT(
            vocab_size=300, max_position_embeddings=64, num_layers=2, num_heads=2, embed_dim=32,
            position_embedding="rotary",
        ),
        task=LanguageModeling(),
        data=chats(file),
        optimizer=Adam(5e-3),
        hooks=(),
        steps=250,
        batch_size=8,
    )  # fmt: skip
    return jdl.train(experiment, file.parent / "run")


def test_answers_and_their_ends_are_learned_and_nothing_else(file):
    data = chats(file)
    example, encode = data.splits()["train"][0], data.tokenizer().encode
    expected, mask = [BOS], [False]
    for role, text in TALKS[0]:
        answers = role == "assistant"
        prefix, content = encode(f"{role.title()}: "), [*encode(text), EOS]
        expected += [*prefix, *content]
        mask += [False] * len(prefix) + [answers] * len(content)
    fill = 65 - len(expected)
    assert example["tokens"].tolist() == expected + [-1] * fill
    assert example["loss_mask"].tolist() == mask + [False] * fill
    short = chats(file, length=20).splits()["train"][0]
    assert short["tokens"].tolist() == expected[:21]


def test_the_loss_is_the_mean_over_masked_tokens(run):
    example = run.experiment.data.splits()["train"][1]
    batch = {name: jnp.asarray(array[None]) for name, array in example.items()}
    logits = run.experiment.model.apply(
        {"params": run.params}, jnp.maximum(batch["tokens"], 0)[:, :-1]
    )
    targets, mask = example["tokens"][1:], example["loss_mask"][1:]
    losses = -np.asarray(jax.nn.log_softmax(logits))[0, np.arange(64), np.maximum(targets, 0)]
    found = run.program.task.evaluate(
        run.experiment.model, run.gather_state(), {**batch, "mask": jnp.ones(1, bool)}
    )["loss"]
    assert float(found.count) == mask.sum()
    np.testing.assert_allclose(float(found.total), losses[mask].sum(), rtol=1e-3)


def test_answers_remember_what_was_said(run):
    tokenizer = run.experiment.data.tokenizer()
    for name in ("Ann", "Bob"):
        talk = Conversation(run, tokenizer, sampling=GREEDY, max_new_tokens=12)
        assert "".join(talk.reply(f"my name is {name}")) == f"hello {name}"
        assert "".join(talk.reply("who am I?")) == name
        assert [m["role"] for m in talk.messages] == ["user", "assistant"] * 2


def test_what_does_not_fit_is_forgotten_from_the_oldest(run):
    tokenizer = run.experiment.data.tokenizer()
    talk = Conversation(run, tokenizer, system="be", sampling=GREEDY, max_new_tokens=12)
    for _ in range(5):
        _ = list(talk.reply("my name is Ann"))
    assert len(talk.messages) < 8
    prompt = ChatTemplate().prompt([*talk.system, *talk.messages[:-1]], tokenizer)
    assert len(prompt) + 12 <= 64 + len(tokenizer.encode("Assistant: "))
    with pytest.raises(jdl.UserError, match=r"the message has \d+ tokens .* reads 64, of which 12"):
        _ = list(talk.reply("name " * 70))
    with pytest.raises(jdl.UserError, match="the message is empty"):
        _ = list(talk.reply(" "))


def test_the_command_answers_what_is_typed_and_what_is_given(run, monkeypatch, capsys):
    monkeypatch.setattr("jdl.cli.chat.__name__", "jdl.cli.chat", raising=False)
    monkeypatch.setattr(
        "jdl.trainer.record.read_run", lambda *_: type("R", (), {"experiment": run.experiment})
    )
    directory = str(run.workdir)
    options = ["--temperature", "0", "--max-new-tokens", "12"]
    assert main(["chat", directory, "--message", "my name is Bob", "who am I?", *options]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "> my name is Bob", "hello Bob", "> who am I?", "Bob",
    ]  # fmt: skip
    typed = iter(["my name is Ann", "who am I?", ""])
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed))
    assert main(["chat", directory, *options]) == 0
    assert capsys.readouterr().out.splitlines() == ["hello Ann", "Ann"]


def one(text):
    def make(path):
        path.write_text(text)
        splits = chats(path).splits()
        return splits["train"][0]

    return make


REFUSED = {
    "no file": (lambda path: chats(path).splits(), "bad.jsonl cannot be read: No such file"),
    "no JSON": (one("{"), "bad.jsonl, line 1 is not valid JSON"),
    "nothing": (one("\n"), "bad.jsonl is empty: each line is a conversation"),
    "no messages": (one('{"text": "a"}'), "bad.jsonl, line 1 is no conversation: write"),
    "no content": (
        one('{"messages": [{"role": "user"}]}'),
        "bad.jsonl, line 1: message 1 needs a role and a content, both texts",
    ),
    "another role": (
        one(lines([[("user", "a"), ("bot", "b")]])),
        "a message has the role 'bot'; roles are user, assistant, system",
    ),
    "no answer": (
        one(lines([[("user", "a")]])),
        "bad.jsonl: conversation 1 has no message of the assistant",
    ),
    "bytes": (
        lambda path: (
            path.write_text(lines(TALKS)),
            chats(path, encoding=Bytes()).splits(),
        ),
        "need <bos> and <eos> tokens, .* set data.encoding to bpe",
    ),
    "no chats": (
        lambda path: Chats(Arrays({"train": {"text": np.array(["a"], object)}}, test_fraction=0,
                                  validation_fraction=0)).splits(),
        "the examples have no 'messages' to read .they have 'text'.: set data.chats",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_conversation_is_refused_in_a_sentence(case, tmp_path):
    make, message = REFUSED[case]
    with pytest.raises(jdl.UserError, match=message):
        make(tmp_path / "bad.jsonl")


def test_a_run_of_other_data_does_not_talk(run):
    with pytest.raises(jdl.UserError, match="max_new_tokens must be from 1 to 63"):
        Conversation(run, run.experiment.data.tokenizer(), max_new_tokens=64)


def test_the_standard_library_makes_conversations(monkeypatch):
    files = stdlib._files()
    monkeypatch.setattr(
        stdlib, "_files", lambda: [p for p in files if p.stem in ("shutil", "glob")]
    )
    data = StandardLibraryChats(validation_fraction=0.1)
    splits = data.splits()
    assert sum(map(len, splits.values())) > 20
    rows = [json.loads(splits["train"][i]["messages"]) for i in range(5)]
    assert rows == [json.loads(data.splits()["train"][i]["messages"]) for i in range(5)]
    for row in rows:
        assert [m["role"] for m in row] == ["user", "assistant"] * 3
        module, name = sorted((row[3]["content"], row[5]["content"]), key=row[0]["content"].find)
        assert f"{module}.{name}" in row[0]["content"]
