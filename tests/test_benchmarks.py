"""The benchmarks' arithmetic and errors; speeds are not tested."""

import dataclasses
import functools
import importlib
import json
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import __main__ as command
from benchmarks import (
    augmentation,
    compare,
    first_look,
    measure,
    operations,
    ours,
    plain,
    profiles,
    report,
    results,
    statistics,
    worker,
)
from benchmarks.trainer import first_batch
from benchmarks.workloads import (
    augmented,
    bert_base,
    bert_finetune,
    cifar10_resnet,
    ctc,
    detector,
    gan,
    gpt,
    lstm_lm,
    resnet50,
    seq2seq,
    unet,
    vit_s16,
    workloads,
)
from jdl import ops
from jdl.analysis import flops
from jdl.errors import UserError

TRANSLATION = {
    "num_layers": 1,
    "num_heads": 2,
    "embed_dim": 8,
    "mlp_dim": 12,
    "vocab_size": 11,
    "max_position_embeddings": 8,
}
SMALL = (
    gpt("tiny", num_layers=1, embed_dim=8, max_position_embeddings=4, batch=2, num_heads=2),
    lstm_lm(2, length=4, num_layers=2, hidden_size=8, vocab_size=11),
    resnet50(2, side=32, classes=5, stage_sizes=(1, 1), num_filters=4),
    bert_base(
        2,
        length=4,
        vocab_size=11,
        max_position_embeddings=8,
        num_layers=1,
        num_heads=2,
        embed_dim=8,
    ),
    bert_finetune(
        2,
        length=4,
        vocab_size=11,
        max_position_embeddings=8,
        num_layers=1,
        num_heads=2,
        embed_dim=8,
    ),
    vit_s16(2, side=8, num_classes=5, patch_size=4, num_layers=1, num_heads=2, embed_dim=8),
    unet(2, (18, 12), channels=(8, 16), features=11),
    detector(2, (24, 20), channels=(8, 16)),
    gan(
        2,
        shape=(6, 4, 1),
        latent_dim=3,
        generator_channels=(4, 8),
        critic_channels=(4, 8),
        num_classes=3,
    ),
    seq2seq(2, length=4, **TRANSLATION),
    seq2seq(2, length=5, **TRANSLATION, pre_norm=False),
    ctc(2, 48, embed_dim=8, kernel_size=3, dilations=(1, 2)),
)
DEEP = (
    "bert_base",
    "bert_finetune",
    "detector",
    "gan",
    "lstm_lm",
    "resnet50",
    "seq2seq",
    "unet",
)  # compile for long


def row(implementation="jdl", **changes):
    usual = {
        "workload": "mlp",
        "size": "tiny",
        "implementation": implementation,
        "device": "a processor",
        "dtype": "fp32",
        "batch": 32,
        "quick": False,
        "parity": {"passed": True, "differences": {"first_loss": 0.0}},
        "step_seconds": {"median": 0.5, "q25": 0.4, "q75": 0.6, "n": 10},
        "items_per_second": 64.0,
        "tokens_per_second": None,
        "mfu_measured": 0.5,
    }
    return usual | changes


def test_a_ratios_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        base = rng.uniform(1, 2, 40)  # the machine's own drift, common to both
        ours_, theirs = base, 1.3 * base * rng.lognormal(0, 0.1, 40)
        found = statistics.ratio(ours_, theirs)
        covered += found["low"] <= 1.3 <= found["high"]
    assert 180 <= covered <= 199


def test_summaries_and_exponents():
    assert statistics.summary([4, 1, 3, 2]) == {"median": 2.5, "q25": 1.75, "q75": 3.25, "n": 4}
    sizes = np.array([1, 2, 4, 8])
    assert statistics.exponent(sizes, 3.0 * sizes**1.5) == pytest.approx(1.5)


def test_parity_is_judged_against_jdl_and_a_row_beyond_it_is_void():
    rows = {
        name: row(name, parity={"loss": loss, "gradient_norm": 1.0, "losses": [loss, 0.5]})
        for name, loss in (("jdl", 1.0), ("near", 1 + 5e-6), ("far", 1.001), ("nan", float("nan")))
    }
    measure._judge(rows, "fp32")
    assert {name: found["parity"]["passed"] for name, found in rows.items()} == {
        "jdl": True,
        "near": True,
        "far": False,
        "nan": False,
    }
    blocks = {"jdl": [1.0, 1.0], "near": [2.0, 2.0], "far": [0.1, 0.1], "nan": [0.1, 0.1]}
    for name in rows:
        rows[name]["step_seconds"] = statistics.summary(blocks[name])
    measure._compare(rows, blocks)
    assert rows["jdl"]["best_peer"] == "near"
    assert rows["jdl"]["ratio_to_best_peer"] == {"median": 2.0, "low": 2.0, "high": 2.0}
    assert "VOID: first_loss differs by 1.0e-03" in report.table([rows["far"]])


def test_what_became_slower_beyond_noise_is_said():
    slow = {"median": 0.8, "q25": 0.7, "q75": 0.9, "n": 10}
    wide = {"median": 0.8, "q25": 0.5, "q75": 0.9, "n": 10}
    old = [row(), row("flax"), row("torch-eager")]
    new = [row(step_seconds=slow), row("flax", step_seconds=wide), row("keras")]
    found = {name.split()[2]: slower for name, _, slower in compare.compare(old, new)}
    assert found == {"jdl": True, "flax": False}


def test_the_table_in_a_text_is_renewed_between_its_marks(tmp_path):
    ratio = {"median": 1.25, "low": 1.1, "high": 1.4}
    rows = [
        row(best_peer="flax", ratio_to_best_peer=ratio),
        row("flax", ratio_of_jdl=ratio, items_per_second=51.0),
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    text = tmp_path / "text.md"
    marks = [f"<!-- benchmarks: {end} -->" for end in ("begin", "end")]
    text.write_text(f"before\n{marks[0]}\nold\n{marks[1]}\nafter\n")
    report.main(tmp_path / "rows.jsonl", readme=text)
    assert "| flax 51 | 1.25x [1.10, 1.40] |" in text.read_text()
    assert "old" not in text.read_text()
    assert text.read_text().startswith("before\n")
    assert text.read_text().endswith("\nafter\n")


def test_the_table_of_results_is_that_of_the_run_directories(tmp_path):
    data = {"train": {"source": "mnist", "count": 60_000}, "test": {"source": "x", "count": 10}}
    for seed, accuracy in enumerate((0.97, 0.99)):
        run = tmp_path / f"seed-{seed}"
        run.mkdir()
        result = {
            "experiment": "mnist_mlp",
            "metrics": {"test": {"accuracy": accuracy}},
            "seconds": 4.0 + seed,
        }
        (run / "result.json").write_text(json.dumps(result))
        (run / "environment.json").write_text(json.dumps({"data": data}))
    assert results.row(tmp_path) == (
        "| `mnist_mlp` | mnist, 60,000 / 10 | test accuracy | 0.9800 | 0.9700 | 2 | 4 |"
    )
    for name, metric, worst in (
        ("digits_gan", "frechet_distance", "0.9900"),
        ("digits_detection", "map_50", "0.9700"),
    ):
        for path in tmp_path.glob("*/result.json"):
            result = json.loads(path.read_text())
            (score,) = result["metrics"]["test"].values()
            new = {"experiment": name, "metrics": {"test": {metric: score}}}
            path.write_text(json.dumps(result | new))
        assert f"| test {metric} | 0.9800 | {worst} | 2 |" in results.row(tmp_path)
    with pytest.raises(UserError, match="holds no finished run"):
        results.row(tmp_path / "elsewhere")


def test_results_of_other_experiments_stay_in_the_table(tmp_path):
    result = {"experiment": "mnist_mlp", "metrics": {"test": {"accuracy": 0.5}}, "seconds": 4.0}
    (tmp_path / "result.json").write_text(json.dumps(result))
    data = {"data": {"train": {"source": "mnist", "count": 3}}}
    (tmp_path / "environment.json").write_text(json.dumps(data))
    text, rows = tmp_path / "text.md", ["| `a` | 1 |", "| `mnist_mlp` | old |", "| `c` | 3 |"]
    marks = [f"<!-- results: {end} -->" for end in ("begin", "end")]
    text.write_text("\n".join(["before", marks[0], results.HEAD, *rows, marks[1], "after\n"]))
    results.main([tmp_path], readme=text)
    new = [rows[0], results.row(tmp_path), rows[2]]
    assert text.read_text().splitlines() == [
        "before", marks[0], *results.HEAD.splitlines(), *new, marks[1], "after"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lsmt"], r"no workload 'lsmt' .*did you mean 'lstm'\?"),
        (["mlp", "--peers", "toch"], r"no peer 'toch' .*did you mean 'torch'\?"),
        (["mlp", "--dtype", "bf1"], r"no dtype 'bf1' .*did you mean 'bf16'\?"),
        (["mlp", "--json", "/no/such/place/x.jsonl"], "cannot be written"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["benchmarks", *arguments])
    assert command.main() == 2
    printed = capsys.readouterr().err
    assert len(printed.splitlines()) == 1
    assert re.search(message, printed), printed


def test_a_results_file_of_another_format_is_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    for text in ("", "{", '{"step": 1}', "[1]"):
        path.write_text(text)
        with pytest.raises(UserError, match=r"rows\.jsonl"):
            report.read(path)


def test_a_peer_that_is_missing_is_named_and_left_out(monkeypatch, capsys):
    there = {"torch": None, "flax": object()}
    monkeypatch.setattr("importlib.util.find_spec", there.get)
    assert command.installed(["torch", "flax"]) == ["flax"]
    assert "torch is not installed" in capsys.readouterr().out


@pytest.mark.parametrize("workload", workloads(False), ids=lambda w: f"{w.name} {w.size}")
def test_random_data_fits_its_experiment_and_is_never_all_zeros(workload):
    experiment = workload.load("fp32")
    arrays = workload.examples()
    assert {len(array) for array in arrays.values()} == {workload.batch}
    assert all(array.any() for array in arrays.values())
    assert {*experiment.task.input_names} <= arrays.keys()


def enlarged(params):
    """With larger weights in attention: at their initial size, what is masked hardly matters."""

    def change(path, leaf):
        name = jax.tree_util.keystr(path)
        return 20 * leaf if "attention" in name or "cross" in name else leaf

    return jax.tree_util.tree_map_with_path(change, params)


class Enlarged(ours.Bare):
    """Begins with larger weights in attention."""

    def _fresh(self):
        state = super()._fresh()
        return state.replace(params=enlarged(state.params))


@functools.cache
def begun(index):
    """A small workload's case, and jdl's first gradient and losses."""
    workload = SMALL[index]
    case = ours.make_case(workload, "fp32", 1)
    case = dataclasses.replace(case, params=enlarged(case.params))
    mine = Enlarged(workload.load("fp32"), case)
    gradient, losses = mine.gradient(), mine.curve(5)
    assert mine.run(2) > 0
    assert len(next(iter(first_batch(case).values()))) == 2
    return case, gradient, losses


@pytest.mark.parametrize(
    "index",
    [
        # Every benchmark begins with the same comparison.
        pytest.param(i, marks=pytest.mark.slow if workload.name in DEEP else ())
        for i, workload in enumerate(SMALL)
    ],
    ids=lambda i: f"{SMALL[i].name} {SMALL[i].size}",
)
@pytest.mark.parametrize(("peer", "variant"), [("flax", "default"), ("torch", "eager")])
def test_a_peer_begins_as_jdl_does(peer, variant, index):
    pytest.importorskip(peer)
    case, gradient, losses = begun(index)
    other = importlib.import_module(f"benchmarks.peers.{peer}").build(case, variant)
    np.testing.assert_allclose(other.gradient(), gradient, rtol=1e-4)
    np.testing.assert_allclose(other.curve(5), losses, rtol=1e-4)


def test_a_worker_finds_each_workload_at_its_size():
    every = [*workloads(False), *workloads(True), augmented(), augmented(256)]
    for workload in every:
        found = worker.pick(**workload.key)
        assert (found.experiment, found.batch) == (workload.experiment, workload.batch)
        assert found.changes == workload.changes


@pytest.mark.parametrize("peer", ["flax", "torch"])
def test_a_workload_that_crops_at_random_agrees_before_it_does(peer):
    pytest.importorskip(peer)
    workload = cifar10_resnet(4, stage_sizes=(1, 1), num_filters=4)
    case = ours.make_case(workload, "fp32", 1)
    mine = ours.Bare(workload.load("fp32"), case)
    other = importlib.import_module(f"benchmarks.peers.{peer}")
    theirs = other.build(case, {"flax": "default", "torch": "channels_last"}[peer])
    np.testing.assert_allclose(theirs.gradient(), mine.gradient(), rtol=1e-4)
    assert theirs.run(1) > 0


def meets(size, kernel, strides):
    """Pairs of an output and a tap of its kernel that meet an input, in one dimension."""
    pad, outputs = kernel // 2, -(-size // strides)
    return sum(0 <= o * strides + t - pad < size for o in range(outputs) for t in range(kernel))


def test_resnet50_multiplies_as_often_as_published():
    side, inputs, layers = 56, 64, [(224, 7, 2, 3, 64)]  # size, kernel, strides, channels
    for stage, blocks in enumerate((3, 4, 6, 3)):
        channels = 64 << stage
        for block in range(blocks):
            strides = 2 if stage and not block else 1
            layers += [(side, 1, 1, inputs, channels), (side, 3, strides, channels, channels)]
            if not block:
                layers.append((side, 1, strides, inputs, 4 * channels))
            side //= strides
            layers.append((side, 1, 1, channels, 4 * channels))
            inputs = 4 * channels
    dense = 2048 * 1000
    padded = dense + sum((size // s * k) ** 2 * i * o for size, k, s, i, o in layers)
    assert padded == 4_089_184_256  # as torchvision and others count it
    real = dense + sum(meets(size, k, s) ** 2 * i * o for size, k, s, i, o in layers)

    workload = resnet50(1)
    model: Any = workload.load("fp32").model
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    assert flops.count(model.apply, shapes, image).flops == 2 * real
    flax = pytest.importorskip("benchmarks.peers.flax.models")
    plain = flax.ResNet(
        stage_sizes=(3, 4, 6, 3), num_filters=64, num_classes=1000, dtype=jnp.float32
    )
    shapes = jax.eval_shape(plain.init, jax.random.key(0), image)
    forward = functools.partial(plain.apply, mutable=["batch_stats"])
    assert flops.count(forward, shapes, image).flops == 2 * real
    assert 0.96 * padded < real < padded


def test_a_language_model_of_lstms_multiplies_what_its_gates_and_logits_need():
    flax = pytest.importorskip("benchmarks.peers.flax")
    workload = lstm_lm(2, length=5, num_layers=3, hidden_size=4, vocab_size=11)
    function, *arguments = flax.loss_function(ours.make_case(workload, "fp32", 1))
    forward = 2 * 2 * 5 * (3 * (4 + 4) * 16 + 4 * 11)
    assert flops.count(function, *arguments).flops == forward
    gradient = jax.value_and_grad(function, has_aux=True)
    assert flops.count(gradient, *arguments).flops == 3 * forward


def test_a_translator_multiplies_what_its_layers_need():
    training = pytest.importorskip("benchmarks.peers.flax.training")
    batch, length, width, hidden = 2, 5, 8, 12
    workload = seq2seq(batch, length=length, **{**TRANSLATION, "num_layers": 2})
    function, *arguments = training.loss_function(ours.make_case(workload, "fp32", 1))
    attention = 4 * width * width + 2 * length * width  # of each place
    layers = 2 * (3 * attention + 2 * 2 * width * hidden)  # cross-attention is the third
    forward = 2 * batch * length * (layers + width * 11)
    assert flops.count(function, *arguments).flops == forward
    gradient = jax.value_and_grad(function, has_aux=True)
    assert flops.count(gradient, *arguments).flops == 3 * forward


def test_texts_to_translate_are_padded_behind_as_those_of_pairs():
    for name, places in (("source", 6), ("target", 7)):
        tokens = seq2seq(200, length=6).examples()[name]
        lengths = (tokens != 0).sum(1)
        assert tokens.shape == (200, places)
        assert tokens.dtype == np.int32
        assert set(lengths) == set(range(2, places + 1))
        np.testing.assert_array_equal(tokens != 0, np.arange(places) < lengths[:, None])


def test_the_share_of_augmentation_is_what_the_plain_step_saves():
    found = augmentation.share({"median": 0.8, "low": 0.75, "high": 1.1})
    assert found == pytest.approx({"median": 0.2, "low": 0.0, "high": 0.25})
    for median, kept in ((0.95, "kept"), (0.85, "missed")):
        shares = augmentation.share({"median": median, "low": median, "high": median})
        assert augmentation.sentence({"augmentation_share": shares}, True).endswith(f"is {kept}")
    assert "lost" in augmentation.sentence({"error": "lost"}, True)


@pytest.mark.parametrize("operation", operations.OPERATIONS, ids=lambda each: each.name)
def test_an_operation_and_its_definition_take_the_same_arguments(operation):
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in operation.shapes]
    for form in (getattr(ops, operation.name), plain.DEFINITIONS[operation.name]):
        result = jax.eval_shape(lambda *a, form=form: operation.call(form, *a), *arrays)
        assert (result.shape, result.dtype) == ((), jnp.float32)


def test_an_instruction_is_described_by_the_program_that_ran(tmp_path):
    (tmp_path / "module_1.init.cpu_after_optimizations.txt").write_text(
        "\nENTRY %main () -> f32[] {\n  %other.1 = f32[2]{0} add(%a, %b), metadata={}\n}"
    )
    (tmp_path / "module_2.step.cpu_after_optimizations.txt").write_text(
        "\n%inner (p: f32[8,4], q: f32[4,2]) -> f32[8,2] {\n"
        "  %p = f32[8,4]{1,0} parameter(0)\n  %q = f32[4,2]{1,0} parameter(1)\n"
        "  ROOT %dot.1 = f32[8,2]{1,0} dot(%p, %q), lhs_contracting_dims={1}\n}\n"
        "\nENTRY %main () -> f32[] {\n"
        "  %fusion.3 = f32[8,2]{1,0} fusion(%a, %b), kind=kCustom, calls=%inner\n"
        '  ROOT %tanh.2 = f32[8]{0} tanh(%c), metadata={op_name="jit(f)/GPT/block_3/inner/tanh"}\n'
        "}\n"
    )
    found = profiles.describe(tmp_path, {"fusion.3", "tanh.2", "ThunkExecutor::Execute"})
    assert found == {"fusion.3": "dot f32[8,4] f32[4,2]", "tanh.2": "block/inner/tanh"}


MACHINE = {
    "platform": "gpu",
    "device": "none",
    "cores": 1,
    "versions": dict.fromkeys(("python", "jax", "flax"), "0"),
    "flags": "",
}


def test_a_first_look_writes_rows_and_profiles(tmp_path, monkeypatch):
    row = {"workload": "mlp", "size": "small", "dtype": "fp32", "implementation": "jdl"}
    found = [{**row, "error": "none", "profile": {"gemm": (1.5, 2.0)}}]
    monkeypatch.setattr(first_look, "measure", lambda *_: found)
    monkeypatch.setattr(first_look, "ask_machine", MACHINE.copy)
    assert first_look.run(("mlp",), peers=False, out=tmp_path) == 0
    assert json.loads((tmp_path / "rows.jsonl").read_text()) == {**row, "error": "none"}
    assert "1.500 ms in     2.0  gemm" in (tmp_path / "profiles.txt").read_text()
    with pytest.raises(UserError, match="there is no part 'mpl'"):
        first_look.run(("mpl",))
