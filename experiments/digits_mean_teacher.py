"""Mean teacher on 20 labeled and 1,294 unlabeled digits (Tarvainen and Valpola, 2017).

    jdl train digits_mean_teacher

Supervised alone, on the same 20 labels, it is TODO (`--task.loss-terms.1.1 0`).

Expect: TODO
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax

from jdl import Experiment
from jdl.data import Digits, Mixture, RandomAffine, Scale, Selection, Stream, Views
from jdl.metrics import Mean
from jdl.models import CNN
from jdl.optimizers import AdamW
from jdl.tasks import Classification, forward, teacher_params


@dataclass(frozen=True, kw_only=True)
class MeanTeacher(Classification):
    """Cross-entropy of labeled rows, and the distance of all to what the teacher predicts."""

    loss_terms: tuple[tuple[str, float], ...] = (("supervised", 1.0), ("consistency", 10.0))
    ramp: int = 400  # steps in which the weight of `consistency` rises to its value

    def model_inputs(self, model, batch):
        return (batch["image"][:, 0],), {}

    def batch_metrics(self, model, params, state, batch, *, train, key=None):
        outputs, new = self._apply(model, params, state, batch, train=train, key=key)
        rows = optax.softmax_cross_entropy_with_integer_labels(outputs, batch["label"])
        found = {"supervised": Mean.of(rows, batch["mask"] & batch["labeled"])}
        found["accuracy"] = self.loss_and_metrics(outputs, batch)["accuracy"]
        if train:
            teacher, other = teacher_params(state), batch["image"][:, 1]
            taught, _ = forward(model, teacher, state.collections, other, train=False)
            apart = ((jax.nn.softmax(outputs) - jax.nn.softmax(taught)) ** 2).sum(1)
            rise = jnp.exp(-5 * (1 - jnp.minimum(state.step / self.ramp, 1)) ** 2)
            found["consistency"] = Mean.of(rise * apart, batch["mask"])
        return found, new


few = Selection(Digits(), classes=tuple(range(10)), num_examples=20)
streams = Stream("labeled", few), Stream("unlabeled", Digits(), weight=3, names=("image",))
augment = RandomAffine(rotation_range=10.0, width_shift_range=0.1, height_shift_range=0.1)
experiment = Experiment(
    model=CNN(channels=(32, 64), dense=(128,)),
    task=MeanTeacher(),
    data=Mixture(streams, device_transforms=(Scale(divisor=16.0), Views(2), augment)),
    optimizer=AdamW(1e-3, weight_decay=1e-3, ema_decay=0.99),
    steps=1200,
    batch_size=64,
)
