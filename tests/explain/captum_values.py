"""Writes the attributions of Captum on PyTorch twins of small networks into captum.json.

    python -m tests.explain.captum_values

Needs torch and captum (0.9); the tests compare the committed file with jdl's.
"""

import json
from pathlib import Path

import numpy as np
import torch
from captum.attr import (
    DeepLift,
    FeatureAblation,
    IntegratedGradients,
    LayerGradCam,
    Occlusion,
    Saliency,
)
from captum.attr._core.deep_lift import SUPPORTED_NON_LINEAR, maxpool1d, nonlinear
from torch import nn

from tests.explain import twins


def tensor(array):
    return torch.tensor(np.asarray(array))


def own(x):
    """Returns a tensor of a module's own: Captum replaces the gradient of all uses of its input."""
    return x.clone()


class Rescaled(nn.Module):
    """A function of one element that Captum's DeepLift rescales; serves one call."""

    function = None

    def forward(self, x):
        return self.function(x)


class Largest(nn.MaxPool1d):
    """Pooling by Captum's rule, which needs one gradient for the input and the baseline.

    They differ behind products of two values that depend on the input: it is that of the input.
    """


def pool(module, x, output, grad_input, grad_output, eps):
    of_input = (torch.cat(2 * grad.chunk(2)[:1]) for grad in (grad_input, grad_output))
    return maxpool1d(module, x, output, *of_input, eps)


SUPPORTED_NON_LINEAR |= {Rescaled: nonlinear, Largest: pool}


class CNN(nn.Module):
    def __init__(self, w):
        super().__init__()
        self.conv0, self.conv1 = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
        self.pool0, self.pool1 = nn.MaxPool2d(2), nn.MaxPool2d(2)
        self.relu0, self.relu1, self.relu2 = nn.ReLU(), nn.ReLU(), nn.ReLU()
        self.dense, self.logits = nn.Linear(16, 5), nn.Linear(5, 3)
        with torch.no_grad():
            for layer, name in ((self.conv0, "Conv_0"), (self.conv1, "Conv_1")):
                layer.weight.copy_(tensor(w[f"{name}.kernel"].transpose(3, 2, 0, 1)))
                layer.bias.copy_(tensor(w[f"{name}.bias"]))
            for layer, name in ((self.dense, "Dense_0"), (self.logits, "logits")):
                layer.weight.copy_(tensor(w[f"{name}.kernel"].T))
                layer.bias.copy_(tensor(w[f"{name}.bias"]))

    def forward(self, x):
        x = self.relu0(self.pool0(self.conv0(x)))
        x = self.relu1(self.pool1(self.conv1(x)))
        x = x.permute(0, 2, 3, 1).reshape(len(x), -1)  # flattened as in JAX
        return self.logits(self.relu2(self.dense(x)))


class LSTM(nn.Module):
    """From embeddings."""

    def __init__(self, w):
        super().__init__()
        self.w = {name: tensor(array) for name, array in w.items()}
        self.states = nn.Identity()
        self.sigmoids = nn.ModuleList(nn.Sigmoid() for _ in range(3 * twins.TIME))
        self.tanhs = nn.ModuleList(nn.Tanh() for _ in range(2 * twins.TIME))

    def forward(self, x):
        sigmoids, tanhs = iter(self.sigmoids), iter(self.tanhs)
        h = c = torch.zeros(len(x), 4)
        states = []
        for t in range(x.shape[1]):
            z = x[:, t] @ self.w["LSTM_0.kernel"] + self.w["LSTM_0.bias"]
            z = z + h @ self.w["LSTM_0.recurrent"]
            i, f, o, g = z.chunk(4, -1)
            i, f, o = (next(sigmoids)(gate) for gate in (i, f, o))
            c = f * c + i * next(tanhs)(g)
            h = o * next(tanhs)(own(c))
            states.append(h)
        h = self.states(torch.stack(states, -1))[..., -1]  # channels first, for LayerGradCam
        return h @ self.w["logits.kernel"] + self.w["logits.bias"]


class ViT(nn.Module):
    """With layer normalization, softmax and GELU in functions of one element, sums and products."""

    def __init__(self, w):
        super().__init__()
        self.w = {name: tensor(array) for name, array in w.items()}
        self.normed = nn.Identity()
        self.pool = Largest(4)
        self.functions = nn.ModuleList(Rescaled() for _ in range(12))

    def apply_each(self, function, x):
        module = next(self.unused)
        module.function = function
        return module(own(x))

    def norm(self, x, name):
        mean = x.mean(-1, keepdim=True)
        squares = self.apply_each(torch.square, x).mean(-1, keepdim=True)
        variance = squares - self.apply_each(torch.square, mean)
        inverse = self.apply_each(torch.rsqrt, variance + 1e-6)
        return (x - mean) * (inverse * self.w[f"{name}.scale"]) + self.w[f"{name}.bias"]

    def softmax(self, x):
        largest = self.pool(own(x).flatten(1, 2)).view(*x.shape[:3], 1)
        powers = self.apply_each(torch.exp, x - largest)
        return powers * self.apply_each(torch.reciprocal, powers.sum(-1, keepdim=True))

    def gelu(self, x):
        return x / 2 * self.apply_each(torch.special.erfc, -x * 0.5**0.5)

    def dense(self, x, name):
        return x @ self.w[f"{name}.kernel"] + self.w[f"{name}.bias"]

    def forward(self, x):
        self.unused = iter(self.functions)
        n = len(x)  # (n, 1, 4, 4)
        x = x.permute(0, 2, 3, 1).reshape(n, 2, 2, 2, 2, 1).transpose(2, 3).reshape(n, 4, 4)
        x = self.dense(x, "patches") + self.w["positions"]
        y = self.norm(x, "block_0.norm1")
        y = self.normed(y.transpose(1, 2)).transpose(1, 2)  # channels first, for LayerGradCam
        joint = self.dense(y, "block_0.attention.qkv").reshape(n, 4, 2, 3, 4)
        q, k, v = (joint[..., i, :].transpose(1, 2) for i in range(3))
        y = (self.softmax(q @ k.transpose(2, 3) / 2) @ v).transpose(1, 2).reshape(n, 4, 8)
        x = x + self.dense(y, "block_0.attention.output")
        y = self.dense(self.norm(x, "block_0.norm2"), "block_0.feed_forward.inner")
        x = x + self.dense(self.gelu(y), "block_0.feed_forward.outer")
        return self.dense(self.norm(x, "norm").mean(1), "logits")


def attributions(model, x, window):
    """Returns what each method gives for the class that is predicted, inputs as in JAX."""
    target = model(x).argmax(-1)
    steps = {"n_steps": 64, "method": "gausslegendre"}
    found = {
        "scores": model(x).gather(1, target[:, None])[:, 0],
        "gradient": Saliency(model).attribute(x, target, abs=False),
        "integrated_gradients": IntegratedGradients(model).attribute(x, target=target, **steps),
    }
    if window is None:
        mask = torch.arange(x.shape[1])[None, :, None].expand(1, *x.shape[1:])
        found["occlusion"] = FeatureAblation(model).attribute(x, target=target, feature_mask=mask)
    else:
        shape = {"sliding_window_shapes": (1, window, window), "strides": (1, 1, 1)}
        found["occlusion"] = Occlusion(model).attribute(x, target=target, **shape)
    return found, target


def listed(array):
    array = array.detach().numpy()
    array = array.transpose(0, 2, 3, 1) if array.ndim == 4 else array
    return np.round(array.astype(float), 8).tolist()


def main():
    cnn = CNN(twins.weights(twins.CNN)).eval()
    x = tensor(twins.images(8).transpose(0, 3, 1, 2))
    found, target = attributions(cnn, x, 3)
    base = tensor(twins.baselines().transpose(0, 3, 1, 2))
    found["deep_lift"] = DeepLift(cnn).attribute(x, base.expand_as(x), target)
    found["grad_cam"] = LayerGradCam(cnn, cnn.conv1).attribute(x, target)
    values = {"cnn": {name: listed(array) for name, array in found.items()}}

    w = twins.weights(twins.LSTM)
    lstm = LSTM(w).eval()
    x = tensor(w["Embed_0.embedding"][twins.tokens()])
    found, target = attributions(lstm, x, None)
    found["deep_lift"] = DeepLift(lstm).attribute(x, torch.zeros_like(x), target)
    found["grad_cam"] = LayerGradCam(lstm, lstm.states).attribute(x, target)
    values["lstm"] = {name: listed(array) for name, array in found.items()}

    vit = ViT(twins.weights(twins.VIT)).eval()
    x = tensor(twins.images(4).transpose(0, 3, 1, 2))
    found, target = attributions(vit, x, 2)
    found["deep_lift"] = DeepLift(vit).attribute(x, torch.zeros_like(x), target)
    found["grad_cam"] = LayerGradCam(vit, vit.normed).attribute(x, target)
    values["vit"] = {name: listed(array) for name, array in found.items()}
    Path(__file__).with_name("captum.json").write_text(json.dumps(values) + "\n")


if __name__ == "__main__":
    main()
