"""Complete networks: Flax modules whose fields are their hyperparameters."""

from jdl.models.airbench import Airbench
from jdl.models.alexnet import AlexNet
from jdl.models.bag_of_words import BagOfWords
from jdl.models.bert import BERT, BERTBase, BERTLarge
from jdl.models.cnn import CNN, VGG11, VGG13, VGG16, VGG19
from jdl.models.conditional_unet import ConditionalUNet
from jdl.models.convnext import (
    ConvNeXt,
    ConvNeXtAtto,
    ConvNeXtBase,
    ConvNeXtLarge,
    ConvNeXtSmall,
    ConvNeXtTiny,
)
from jdl.models.dcgan import DCGAN
from jdl.models.debiased import Debiased
from jdl.models.deepar import DeepAR
from jdl.models.deeplab import (
    DeepLabV3Plus,
    DeepLabV3PlusResNet18,
    DeepLabV3PlusResNet50,
    DeepLabV3PlusSmall,
)
from jdl.models.dit import DiT
from jdl.models.enet import ENet
from jdl.models.forecaster import (
    Forecaster,
    RecurrentEncoder,
    TemporalConvNet,
    TransformerEncoder,
)
from jdl.models.gpt import GPT, GPT2, GPT2XL, GPT2Large, GPT2Medium
from jdl.models.image_transform import ImageTransformNet
from jdl.models.masked_autoencoder import MaskedAutoencoder
from jdl.models.mlp import MLP
from jdl.models.projected import Projected
from jdl.models.recommenders import MatrixFactorization, NeuMF, SASRec
from jdl.models.recurrent_lm import RecurrentLM
from jdl.models.resnet import (
    ResNet,
    ResNet8,
    ResNet18,
    ResNet20,
    ResNet32,
    ResNet34,
    ResNet44,
    ResNet50,
    ResNet56,
    ResNet101,
    ResNet110,
    ResNet152,
)
from jdl.models.rnn import RNN
from jdl.models.seq2seq import EncoderDecoder, TransformerBase, TransformerBig
from jdl.models.seq2seq_lstm import LSTMEncoderDecoder
from jdl.models.speech_encoder import SpeechEncoder
from jdl.models.unet import UNet
from jdl.models.vae import VAE
from jdl.models.vit import ViT, ViTBase16, ViTLarge16, ViTSmall16, ViTTiny16

__all__ = [
    "BERT",
    "CNN",
    "DCGAN",
    "GPT",
    "GPT2",
    "GPT2XL",
    "MLP",
    "RNN",
    "VAE",
    "VGG11",
    "VGG13",
    "VGG16",
    "VGG19",
    "Airbench",
    "AlexNet",
    "BERTBase",
    "BERTLarge",
    "BagOfWords",
    "ConditionalUNet",
    "ConvNeXt",
    "ConvNeXtAtto",
    "ConvNeXtBase",
    "ConvNeXtLarge",
    "ConvNeXtSmall",
    "ConvNeXtTiny",
    "Debiased",
    "DeepAR",
    "DeepLabV3Plus",
    "DeepLabV3PlusResNet18",
    "DeepLabV3PlusResNet50",
    "DeepLabV3PlusSmall",
    "DiT",
    "ENet",
    "EncoderDecoder",
    "Forecaster",
    "GPT2Large",
    "GPT2Medium",
    "ImageTransformNet",
    "LSTMEncoderDecoder",
    "MaskedAutoencoder",
    "MatrixFactorization",
    "NeuMF",
    "Projected",
    "RecurrentEncoder",
    "RecurrentLM",
    "ResNet",
    "ResNet8",
    "ResNet18",
    "ResNet20",
    "ResNet32",
    "ResNet34",
    "ResNet44",
    "ResNet50",
    "ResNet56",
    "ResNet101",
    "ResNet110",
    "ResNet152",
    "SASRec",
    "SpeechEncoder",
    "TemporalConvNet",
    "TransformerBase",
    "TransformerBig",
    "TransformerEncoder",
    "UNet",
    "ViT",
    "ViTBase16",
    "ViTLarge16",
    "ViTSmall16",
    "ViTTiny16",
]
