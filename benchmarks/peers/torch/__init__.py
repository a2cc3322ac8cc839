"""PyTorch, on an NVIDIA GPU if available: models as in its examples.

The initial weights are jdl's.
Variants: `eager`; `channels_last`, the memory layout that PyTorch recommends for convolutions; and
`compile`, where the model and its loss go through `torch.compile`, images again channels last.
"""

import torch

from benchmarks.peers.torch.dense import Detector, UNet
from benchmarks.peers.torch.gan import GAN, Adversarial
from benchmarks.peers.torch.models import CNN, LSTM, MLP, LanguageModel, ResNet, SmallResNet
from benchmarks.peers.torch.seq2seq import EncoderDecoder
from benchmarks.peers.torch.speech import SpeechEncoder
from benchmarks.peers.torch.training import DEVICE, IMAGES, Training, tensors
from benchmarks.peers.torch.transformers import BERT, GPT, ViT
from benchmarks.trainer import Case
from jdl.errors import UserError, nearest

VERSION = torch.__version__
VARIANTS = ("eager", "compile", "channels_last")

MODELS = {
    "mlp": MLP,
    "cnn": CNN,
    "resnet50": ResNet,
    "cifar10_resnet": SmallResNet,
    "unet": UNet,
    "detector": Detector,
    "gan": GAN,
    "vit_s16": ViT,
    "bert_base": BERT,
    "bert_finetune": BERT,
    "lstm": LSTM,
    "lstm_lm": LanguageModel,
    "transformer": GPT,
    "seq2seq": EncoderDecoder,
    "ctc": SpeechEncoder,
}


def build(case: Case, variant: str) -> Training:
    """The trainer of a workload.

    Raises:
      UserError: if the variant is unknown, or useless for the workload.
    """
    if variant not in VARIANTS:
        raise UserError(
            f"torch has no variant {variant!r}, only {', '.join(VARIANTS)}"
            + nearest(variant, VARIANTS)
        )
    if variant == "channels_last" and case.name not in IMAGES:
        known = " and ".join(IMAGES)
        raise UserError(f"channels_last is a layout of images: use it for {known}, not {case.name}")
    if variant == "compile" and case.name in ("lstm", "lstm_lm"):
        raise UserError("torch.compile leaves nn.LSTM to eager mode: use the variant eager")
    torch.set_num_threads(case.threads)
    inputs, targets = tensors(case)
    model = MODELS[case.name](case).to(DEVICE)
    # Compiled for CPUs, channels-first images get wrong gradients in PyTorch 2.13.
    if case.name in IMAGES and variant != "eager":
        model = model.to(memory_format=torch.channels_last)
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    if variant == "compile":
        for part in model.children() if case.name == "gan" else [model]:
            part.compile(fullgraph=True)  # an error if a part would run in eager mode
    training = (Adversarial if case.name == "gan" else Training)(case, model, (inputs, targets))
    try:
        training.gradient()  # compiles both passes before anything is timed
    except RuntimeError:
        if not hasattr(model, "lstm") or case.dtype != "bf16":
            raise
        model.lstm.onednn = False  # its LSTM takes bf16 only on CPUs with AVX-512
    return training
