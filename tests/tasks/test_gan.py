"""The objectives of GANs, their penalties, classes and spectral norm, and what is refused."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jdl
from jdl import Experiment
from jdl.data import Arrays, Scale
from jdl.errors import UserError
from jdl.models import DCGAN
from jdl.optimizers import SGD
from jdl.parallel import Pmap, Single
from jdl.step import Program, update
from jdl.tasks import GAN, hinge, non_saturating, relativistic, with_row_keys

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 4, 4, 1)).astype(np.uint8)
LABELS = np.arange(24) % 3
DATA = Arrays(
    {"train": {"image": PIXELS, "label": LABELS}},
    validation_fraction=0,
    test_fraction=0,
    device_transforms=(Scale(),),
)
MODEL = DCGAN((4, 4, 1), 3, (4, 4), (4,), num_classes=3)
TASK = GAN(objective=relativistic, r1=0.5, r2=0.25, num_classes=3)
SINGLE = Single()


def make(model=MODEL, task=TASK, **changes):
    settings = {
        "model": model, "task": task, "data": DATA, "optimizer": SGD(0.1), "hooks": (),
        "strategy": SINGLE, "steps": 3, "batch_size": 8, "runtime": jdl.Runtime(log_every=1),
    }  # fmt: skip
    return Experiment(**(settings | changes))


def test_objectives_are_the_papers_formulas():
    real, fake = jax.random.normal(jax.random.key(0), (2, 5))

    def log_sigmoid(x):
        return -np.log1p(np.exp(-x))

    expected = {
        non_saturating: (-log_sigmoid(fake), -log_sigmoid(real) - log_sigmoid(-fake)),
        hinge: (-fake, np.maximum(0, 1 - real) + np.maximum(0, 1 + fake)),
        relativistic: (-log_sigmoid(fake - real), -log_sigmoid(real - fake)),
    }
    for objective, losses in expected.items():
        np.testing.assert_allclose(objective(real, fake), losses, rtol=1e-5)


@functools.cache
def trained(strategy=SINGLE):
    return jdl.train(make(strategy=strategy, final_train_evaluation=False))


def test_losses_are_those_of_pairs_with_both_penalties():
    state = trained().gather_state()
    mask = jnp.arange(8) < 6
    batch = {
        "image": jnp.asarray(PIXELS[:8] / 255, jnp.float32),
        "label": jnp.asarray(LABELS[:8]),
        "mask": mask,
    }
    batch = with_row_keys(batch, jax.random.key(3))
    variables = {"params": state.params, **state.collections}
    fake = jax.jit(functools.partial(TASK.sample, MODEL))(state, batch)

    @jax.jit
    @jax.vmap
    @jax.value_and_grad
    def judge(image, label):
        return MODEL.apply(variables, image[None], label[None], method="judge")[0]

    scores, slopes = zip(*(judge(x, batch["label"]) for x in (batch["image"], fake)), strict=True)
    generator, critic = relativistic(*scores)
    squares = [(np.asarray(slope) ** 2).sum((1, 2, 3)) for slope in slopes]
    critic += 0.25 * squares[0] + 0.125 * squares[1]
    found = jax.jit(functools.partial(TASK.evaluate, MODEL))(state, batch)
    assert found["generator_loss"].compute() == pytest.approx(float(generator[:6].mean()), rel=1e-4)
    assert found["critic_loss"].compute() == pytest.approx(float(critic[:6].mean()), rel=1e-4)
    assert squares[0].min() > 0


def test_a_conditional_gan_is_the_same_under_pmap():
    expected, found = trained().history["train"], trained(Pmap(2)).history["train"]
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-4, err_msg=name)


def test_the_critics_kernels_have_the_spectral_norm_one():
    critic = MODEL.clone(spectral_norm=True)
    image, label = jnp.asarray(PIXELS[:2] / 255), jnp.asarray(LABELS[:2])
    variables = critic.init(jax.random.key(0), image, label, method="judge")
    judge = jax.jit(functools.partial(critic.apply, train=True, mutable=True, method="judge"))
    for _ in range(30):  # power iterations
        variables = judge(variables, image, label)[1]
    kernels = variables["params"]["critic"]
    stats = jax.tree_util.tree_leaves_with_path(variables["batch_stats"]["critic"])
    sigmas = {path[-1].key: leaf for path, leaf in stats if path[-1].key.endswith("sigma")}
    assert len(sigmas) == 3
    for name, sigma in sigmas.items():
        module, leaf, _ = name.split("/")
        kernel = np.asarray(kernels[module][leaf])
        largest = np.linalg.svd(kernel.reshape(-1, kernel.shape[-1]), compute_uv=False)[0]
        assert sigma == pytest.approx(largest, rel=1e-3)


def test_samples_are_of_the_classes_asked_for_or_of_drawn_ones():
    run = trained()
    state, keys = run.gather_state(), jax.random.key(1)
    batch = with_row_keys({"mask": jnp.ones(8, bool)}, keys)
    sample = jax.jit(functools.partial(TASK.sample, MODEL))
    drawn = sample(state, batch)
    by_class = [sample(state, {**batch, "label": jnp.full(8, label)}) for label in range(3)]
    same = np.array([[np.allclose(drawn[i], x[i]) for x in by_class] for i in range(8)])
    assert (same.sum(1) == 1).all()
    assert same.any(0).sum() > 1
    assert run.sample(5).pixels.shape == (5, 4, 4, 1)


def test_a_player_whose_loss_is_not_a_number_stays_and_the_other_trains():
    def broken(real, fake):
        generator, critic = non_saturating(real, fake)
        return generator, jnp.nan * critic

    task = GAN(objective=broken, num_classes=3)
    program = Program(MODEL, task, SGD(0.1).build(9))
    state = trained().gather_state()
    state = state.replace(opt_state=program.optimizer.init(state.params))
    batch = {"image": PIXELS[:8] / np.float32(255), "label": LABELS[:8], "mask": np.ones(8, bool)}
    batch = {name: jnp.asarray(array) for name, array in batch.items()}
    new, metrics = jax.jit(functools.partial(update, program))(state, batch)
    equal = jax.tree.map(np.array_equal, new.params, state.params)
    moved = {name: not all(jax.tree.leaves(tree)) for name, tree in equal.items()}
    assert moved == {"generator": True, "critic": False}
    assert metrics["skipped"].compute() == 1


@pytest.mark.parametrize("num_classes", [0, 1], ids=["without", "one"])
def test_data_of_one_class_train_and_sample(num_classes):
    arrays = {"image": PIXELS[:6], "label": np.zeros(6, int)}
    data = dataclasses.replace(DATA, arrays={"train": arrays})
    model = MODEL.clone(num_classes=num_classes)
    run = jdl.train(make(model, GAN(r1=0.5, num_classes=num_classes), data=data, steps=2))
    assert all(np.isfinite(values).all() for values in run.history["train"].values())
    samples = run.sample(3).pixels
    assert samples.shape == (3, 4, 4, 1)
    assert np.isfinite(samples).all()
    if num_classes:
        np.testing.assert_array_equal(run.sample(3, label=0).pixels, samples)
        with pytest.raises(UserError, match=r"the label of samples is 1, outside 0\.\.0"):
            run.sample(3, label=1)
    else:
        with pytest.raises(UserError, match="draws no samples of a class"):
            run.sample(3, label=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"task": dataclasses.replace(TASK, num_classes=2)},
            r"label 2 at row . is outside 0\.\.1 .task",
        ),
        ({"task": GAN()}, r"model\.num_classes=3 needs labels: set task\.num_classes"),
        (
            {"model": DCGAN((8, 8, 1), 3, (4, 4), (4,), 3)},
            r"images of shape \(8, 8, 1\), where",
        ),
        (
            {"model": DCGAN((4, 4, 1), 3, (4, 4, 4, 4), (4,), 3)},
            "4 levels, for which sides must",
        ),
    ],
    ids=["label", "classes", "shape", "levels"],
)
def test_what_does_not_fit_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        jdl.train(make(**change))
