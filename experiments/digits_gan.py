"""GAN on scikit-learn's digits, with the penalty R1 in one of four steps (Mescheder et al., 2018).

    jdl train digits_gan

Expect: test frechet_distance 0.3021 (3 seeds, max 0.3134), 28 s, 2 cores of an Intel Xeon
"""

import flax.linen as nn
import jax

from jdl import Experiment
from jdl.data import Digits, Scale
from jdl.hooks import Sample
from jdl.metrics import FrechetDistance, Mean
from jdl.models import MLP
from jdl.optimizers import Adam, Partition
from jdl.tasks import Game, row_keys


class Players(nn.Module):
    """A generator and a critic."""

    def setup(self):
        self.generator, self.critic = MLP((128, 128), 64), MLP((128, 128), 1)

    def generate(self, keys):
        noise = jax.vmap(lambda key: jax.random.normal(key, (16,)))(keys)
        return nn.sigmoid(self.generator(noise)).reshape(-1, 8, 8, 1)

    def judge(self, image):
        return self.critic(image)[:, 0]


class GAN(Game):
    """Over pixels, as many training images are at a distance of 0.31, uniform noise at 10.0."""

    unconditional = True

    def losses(self, play, batch):
        real, fake = batch["image"], play("generate", row_keys(batch))
        r1 = play.lazy(4, lambda: (play.gradient("judge", real) ** 2).sum((1, 2, 3)))
        critic = nn.softplus(play("judge", fake)) + nn.softplus(-play("judge", real)) + 0.05 * r1
        rows = {"generator": nn.softplus(-play("judge", fake)), "critic": critic}
        return {player: Mean.of(loss, batch["mask"]) for player, loss in rows.items()}

    def sample(self, model, state, batch):
        return model.apply({"params": state.params}, row_keys(batch), method="generate")


adam = Adam(1e-3, b1=0.0, b2=0.99, ema_decay=0.99)
experiment = Experiment(
    model=Players(),
    task=GAN(targets="image", metrics=(FrechetDistance(),)),
    data=Digits(device_transforms=(Scale(divisor=16.0),)),
    optimizer=Partition(parts=(("generator", adam), ("critic", adam))),
    hooks=(*Experiment.hooks, Sample(every=500, count=64)),
    steps=3000,
    batch_size=64,
)
