"""Games: gradients by player, strategies, lazy penalties, samples, and what is refused."""

import dataclasses
import functools
import re
from dataclasses import dataclass, field

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import jdl
from jdl import Experiment
from jdl.analysis.find import find_lr
from jdl.config.overrides import override
from jdl.data import Arrays, Scale
from jdl.errors import UserError
from jdl.hooks import Callback, Hook, Sample
from jdl.media import to_bytes
from jdl.metrics import Mean
from jdl.models import MLP
from jdl.optimizers import SGD, Adam, Partition
from jdl.parallel import DataParallel, FullySharded, Pmap, Single
from jdl.report import run_report
from jdl.sweeps.seeds import train_seeds
from jdl.tasks import Frozen, Game, row_keys


class Players(nn.Module):
    def setup(self):
        self.generator = nn.Dense(16)
        self.critic = nn.Dense(1)

    def generate(self, noise):
        return nn.sigmoid(self.generator(noise)).reshape(-1, 4, 4, 1)

    def judge(self, image):
        return self.critic(nn.tanh(image.reshape(len(image), -1)))[:, 0]


def noise(batch):
    return jax.vmap(lambda key: jax.random.normal(key, (3,)))(row_keys(batch))


@dataclass(frozen=True, kw_only=True)
class GAN(Game):
    unconditional = True
    every: int = 2  # steps between penalties

    def losses(self, play, batch):
        real, mask = batch["image"], batch["mask"]
        fake, score = play("judge", play("generate", noise(batch))), play("judge", real)
        r1 = play.lazy(self.every, lambda: (play.gradient("judge", real) ** 2).sum((1, 2, 3)))
        play.metrics["margin"] = Mean.of(score - fake, mask)
        critic = nn.softplus(fake) + nn.softplus(-score) + r1
        return {"generator": Mean.of(nn.softplus(-fake), mask), "critic": Mean.of(critic, mask)}

    def sample(self, model, state, batch):
        return model.apply({"params": state.params}, noise(batch), method="generate")


PIXELS = np.random.default_rng(0).integers(0, 17, (40, 4, 4, 1)).astype(np.uint8)
SINGLE = Single()
DATA = Arrays(
    {"train": {"image": PIXELS}, "validation": {"image": PIXELS[:10]}},
    device_transforms=(Scale(divisor=16.0),),
)
OPTIMIZER = Partition(parts=(("generator", Adam(0.02, every=2)), ("critic", SGD(0.5))))


def make_experiment(*hooks, **changes):
    settings = {
        "model": Players(), "task": GAN(), "data": DATA, "optimizer": OPTIMIZER, "hooks": hooks,
        "strategy": Single(), "steps": 6, "batch_size": 8, "runtime": jdl.Runtime(log_every=1),
    }  # fmt: skip
    return Experiment(**(settings | changes))


@functools.cache
def trained(strategy=SINGLE, num_microbatches=1):
    return jdl.train(make_experiment(strategy=strategy, num_microbatches=num_microbatches))


@pytest.mark.parametrize(
    ("strategy", "count"),
    [(DataParallel(2), 1), (FullySharded(2, min_elements=1), 1), (Pmap(2), 1), (Pmap(2), 2)],
    ids=lambda x: getattr(type(x), "__name__", x) if not isinstance(x, int) else f"of {x}",
)
def test_a_game_that_draws_noise_is_the_same_under_every_strategy(strategy, count):
    expected, found = trained(), trained(strategy, count)
    for name, values in expected.history["train"].items():
        np.testing.assert_allclose(found.history["train"][name], values, atol=1e-5, err_msg=name)
    assert set(expected.history["train"]) == {
        "step", "epoch", "generator_loss", "critic_loss", "loss", "margin"
    }  # fmt: skip
    for split in ("train", "validation"):
        for name, value in expected.evaluate(split).items():
            assert found.evaluate(split)[name] == pytest.approx(value, abs=1e-5)
    np.testing.assert_allclose(found.sample(9).pixels, expected.sample(9).pixels, atol=1e-5)
    np.testing.assert_array_equal(expected.sample(3).pixels, expected.sample(9).pixels[:3])
    other = expected.sample(3, jax.random.key(1))
    assert (other.pixels != expected.sample(3).pixels).all()


def test_each_player_descends_its_own_loss_alone():
    run = trained()
    state, task = run.gather_state(), GAN()
    batch = {"image": jnp.asarray(PIXELS[:8] / 16, jnp.float32), "mask": jnp.arange(8) < 6}
    batch = jdl.tasks.with_row_keys(batch, jax.random.key(3))

    def judge(critic, image):
        return jnp.tanh(image.reshape(8, -1)) @ critic["kernel"][:, 0] + critic["bias"][0]

    def generate(generator):
        return nn.sigmoid(noise(batch) @ generator["kernel"] + generator["bias"])

    def generator_loss(generator):
        return nn.softplus(-judge(state.params["critic"], generate(generator)))[:6].sum()

    def critic_loss(critic, weight):
        slope = jax.vmap(jax.grad(lambda x: (jnp.tanh(x) @ critic["kernel"])[0]))
        r1 = (slope(batch["image"].reshape(8, -1)) ** 2).sum(1)
        fake = nn.softplus(judge(critic, generate(state.params["generator"])))
        return (fake + nn.softplus(-judge(critic, batch["image"])) + weight * r1)[:6].sum()

    expected = jax.jit(jax.grad(generator_loss))(state.params["generator"])
    gradient = jax.jit(functools.partial(task.gradient, Players()))
    critic_loss_and_gradient = jax.jit(jax.value_and_grad(critic_loss))
    for step, weight in ((4, 2.0), (5, 0.0)):  # a penalty of twice the weight, every second step
        at = state.replace(step=jnp.asarray(step))
        found, weights, _, metrics = gradient(at, batch, jax.random.key(0))
        expected_loss, critic = critic_loss_and_gradient(state.params["critic"], weight)
        for name in ("kernel", "bias"):
            np.testing.assert_allclose(found["generator"][name], expected[name], atol=1e-5)
            np.testing.assert_allclose(found["critic"][name], critic[name], atol=1e-5)
        assert weights == {"generator": 6, "critic": 6}
        np.testing.assert_allclose(metrics["critic_loss"].total, expected_loss, atol=1e-4)
    evaluated = jax.jit(functools.partial(task.evaluate, Players()))(state, batch)["critic_loss"]
    expected_loss, _ = critic_loss_and_gradient(state.params["critic"], 1.0)
    np.testing.assert_allclose(evaluated.total, expected_loss, atol=1e-4)


@dataclass(frozen=True, kw_only=True)
class Matching(GAN):
    """The generator also matches the outputs of a frozen network."""

    extractor: Frozen = field(default=Frozen(MLP((), 3), name="extractor"))

    def losses(self, play, batch):
        found = super().losses(play, batch)
        fake = play("generate", noise(batch))
        apart = self.extractor(play.state, fake) - self.extractor(play.state, batch["image"])
        play.metrics["apart"] = Mean.of((apart**2).sum(1), batch["mask"])
        total = found["generator"].total + play.metrics["apart"].total
        return {**found, "generator": Mean(total, found["generator"].count)}


def test_a_frozen_network_is_a_part_of_a_game(tmp_path):
    run = jdl.train(make_experiment(task=Matching()), tmp_path / "run")
    other = jdl.train(make_experiment(task=Matching(), strategy=Pmap(2), num_microbatches=2))
    for name, values in run.history["train"].items():
        np.testing.assert_allclose(other.history["train"][name], values, atol=1e-5, err_msg=name)
    state = run.gather_state()
    before = run.compiled.init(jax.random.key(run.experiment.seed))
    chex.assert_trees_all_equal(state.collections, before.collections)
    (layer,) = state.collections["extractor"]["params"].values()
    batch = {"image": jnp.asarray(PIXELS[:8] / 16, jnp.float32), "mask": jnp.arange(8) < 6}
    batch = jdl.tasks.with_row_keys(batch, jax.random.key(3))
    real = batch["image"].reshape(8, -1) @ layer["kernel"]

    def apart(generator):
        fake = nn.sigmoid(noise(batch) @ generator["kernel"] + generator["bias"])
        return ((fake @ layer["kernel"] - real) ** 2).sum(1)[:6].sum()

    expected = jax.jit(jax.grad(apart))(state.params["generator"])
    with_it, without = (
        jax.jit(functools.partial(task.gradient, Players()))(state, batch, jax.random.key(0))[0]
        for task in (Matching(), GAN())
    )
    for name in ("kernel", "bias"):
        gained = with_it["generator"][name] - without["generator"][name]
        np.testing.assert_allclose(gained, expected[name], atol=1e-4)
        np.testing.assert_allclose(with_it["critic"][name], without["critic"][name], atol=1e-6)
    opened = jdl.open(tmp_path / "run", make_experiment(task=Matching()))
    np.testing.assert_array_equal(opened.sample(3).pixels, run.sample(3).pixels)
    foreign = Matching().extractor

    class Foreign(GAN):
        def losses(self, play, batch):
            foreign(play.state, batch["image"])
            return super().losses(play, batch)

    with pytest.raises(UserError, match="no variables of the frozen network 'extractor': make the"):
        jdl.train(make_experiment(task=Foreign()))


@dataclass(frozen=True, kw_only=True)
class Named(GAN):
    """Renames its players."""

    names: tuple[tuple[str, str], ...] = ()

    def losses(self, play, batch):
        found = super().losses(play, batch)
        return {name: found[own] for name, own in self.names}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            (("generator", "generator"), ("critc", "critic")),
            r"the player 'critc', which has no parameters .* critic, generator\); did you mean",
        ),
        (
            (("generator", "generator"),),
            r"parameter critic\.bias belongs to no player \(they are generator\): return a loss",
        ),
        (
            (("generator", "generator"), ("critic", "critic"), ("critic.bias", "critic")),
            r"parameter critic\.bias belongs to two players, 'critic' and 'critic\.bias'",
        ),
    ],
)
def test_a_player_has_parameters_and_each_parameter_one_player(names, message, tmp_path):
    with pytest.raises(UserError, match=message):
        jdl.train(make_experiment(task=Named(names=names)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_has_no_effect_or_is_no_loss_is_refused():
    with pytest.raises(UserError, match=r"task\.sown_losses has no effect on GAN, a game"):
        GAN(sown_losses=("x",))

    class Wrong(GAN):
        def losses(self, play, batch):
            return {player: loss.total for player, loss in super().losses(play, batch).items()}

    with pytest.raises(UserError, match=r"returns .* for 'generator': return a Mean"):
        jdl.train(make_experiment(task=Wrong()))

    class Silent(Game):
        every, losses = 2, GAN.losses

    with pytest.raises(UserError, match="Silent defines neither sample nor predict, and Pl"):
        jdl.train(make_experiment(task=Silent()))
    with pytest.raises(UserError, match="a penalty every 0 steps"):
        jdl.train(make_experiment(task=GAN(every=0)))


def test_rates_are_found_searched_and_frozen_by_player():
    curve = find_lr(make_experiment(), low=1e-4, high=10.0, steps=20)
    assert len(curve.rates) >= 10
    changed = override(make_experiment(), {"optimizer.parts.1.1.learning_rate": 0.25})
    assert changed.optimizer.parts[1][1] == SGD(0.25)
    frozen = dataclasses.replace(OPTIMIZER, frozen=("critic",))
    run = jdl.train(make_experiment(optimizer=frozen))
    before = run.compiled.init(jax.random.key(run.experiment.seed)).params
    np.testing.assert_array_equal(run.params["critic"]["kernel"], before["critic"]["kernel"])
    assert (run.params["generator"]["kernel"] != before["generator"]["kernel"]).any()


def test_vectorized_seeds_of_a_game_equal_single_runs(tmp_path, command):
    hook = Sample(every=4, count=4)
    train_seeds(make_experiment(hook), 2, tmp_path / "both")
    alone = jdl.train(make_experiment(hook, seed=1), tmp_path / "one")
    page = run_report.samples.sections(jdl.open(tmp_path / "one"))
    assert re.findall(r"<figcaption>(step \d+)", "".join(page)) == ["step 4", "step 6"]
    code, out, _ = command("sample", tmp_path / "one", "--count", 3, "--out", tmp_path / "out")
    assert code == 0
    files = sorted((tmp_path / "out").iterdir())
    assert out.split() == list(map(str, files))
    drawn = np.stack([np.asarray(Image.open(file)) for file in files])
    np.testing.assert_array_equal(drawn, to_bytes(alone.sample(3).pixels)[..., 0])
    for name in ("step-000000004.png", "step-000000006.png"):
        pixels = [
            np.asarray(Image.open(folder / "samples" / name), int)
            for folder in (alone.workdir, tmp_path / "both" / "seed-1")
        ]
        assert abs(pixels[0] - pixels[1]).max() <= 1


@dataclass(frozen=True, kw_only=True)
class Watch(Hook):
    def build(self, run):
        return _Watch(run)


class _Watch(Callback):
    def __init__(self, run):
        self._run, self.found = run, []
        WATCHED.append(self)

    def due(self, step):
        return step == 3

    def __call__(self, event):
        if event.step != 3:
            return
        zeros = jax.tree.map(jnp.zeros_like, event.state.params)
        x = {"image": PIXELS[:5]}
        self.found = [
            jax.tree.map(np.asarray, event.state.params),
            self._run.predict(x),
            self._run.predict(x, state=event.state),
            self._run.predict(x, state=event.state.replace(params=zeros)),
            self._run.sample(5, state=event.state).pixels,
            self._run.evaluate("validation", event.state),
            self._run.evaluate("validation"),
        ]


WATCHED = []


@pytest.mark.parametrize(
    "strategy", [FullySharded(2, min_elements=1), Pmap(2)], ids=lambda x: type(x).__name__
)
def test_a_hook_reads_predicts_and_samples_the_whole_state_under_every_strategy(strategy):
    jdl.train(make_experiment(Watch(), strategy=strategy))
    params, own, given, zeroed, sampled, *scores = WATCHED.pop().found
    assert params["generator"]["kernel"].shape == (3, 16)
    np.testing.assert_array_equal(own, given)
    np.testing.assert_array_equal(own, sampled)
    np.testing.assert_array_equal(zeroed, 0.5)
    assert scores[0] == scores[1]
    reference = trained_watch()
    np.testing.assert_allclose(own, reference, atol=1e-5)


@functools.cache
def trained_watch():
    jdl.train(make_experiment(Watch()))
    return WATCHED.pop().found[1]
