"""A tiny experiment for each kind of task, on made-up data."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

import jdl
from jdl.audio import MelSpectrogram
from jdl.data import (
    BPE,
    Arrays,
    AudioFeatures,
    Interactions,
    MaskTokens,
    Pad,
    Pairs,
    Panel,
    Series,
    Speech,
    Table,
    Texts,
    Tokens,
    Views,
    WordLevel,
    Words,
)
from jdl.diffusion import Euler
from jdl.hooks import Checkpoint
from jdl.models import (
    BERT,
    CNN,
    DCGAN,
    GPT,
    MLP,
    RNN,
    VAE,
    BagOfWords,
    Debiased,
    EncoderDecoder,
    Forecaster,
    MaskedAutoencoder,
    MatrixFactorization,
    Projected,
    RecurrentEncoder,
    SASRec,
    SpeechEncoder,
    UNet,
)
from jdl.optimizers import Adam, Partition
from jdl.parallel import Single
from jdl.tasks import (
    CTC,
    GAN,
    AdversarialClassification,
    AnomalyDetection,
    BinaryClassification,
    Classification,
    Detection,
    Diffusion,
    Embedding,
    Forecast,
    LanguageModeling,
    MaskedAutoencoding,
    MaskedLanguageModeling,
    MultiLabelClassification,
    NextItem,
    QuantileForecast,
    Regression,
    Segmentation,
    Translation,
    VariationalAutoencoding,
)

ROWS = 24
TEXTS = ("a dog runs over a field", "two men sit on a red bench", "a man sits", "dogs run home")


def draw(*shape, seed=0):
    return np.random.default_rng(seed).random(shape, np.float32)


def numbers(highest, *shape):
    return np.random.default_rng(1).integers(0, highest, shape).astype(np.int32)


def arrays(*transforms, **given):
    return Arrays({"train": given, "validation": given}, device_transforms=transforms)


def objects(values):
    found = np.empty(len(values), object)
    found[:] = values
    return found


def csv(folder, header, lines):
    path = folder / "rows.csv"
    path.write_text("\n".join([header, *lines]) + "\n")
    return str(path)


def images(model, task, *transforms, **targets):
    return {"model": model, "task": task, "data": arrays(
        *transforms, image=draw(ROWS, 8, 8, 1), **targets
    )}  # fmt: skip


class Denoiser(nn.Module):
    """A dense network of image, time and condition."""

    @nn.compact
    def __call__(self, x, time, condition=None):
        rows = jnp.concatenate([x.reshape(len(x), -1), time[:, None], condition], -1)
        return nn.Dense(64)(nn.tanh(nn.Dense(8)(rows))).reshape(x.shape)


LABELS = {"label": np.arange(ROWS, dtype=np.int32) % 3}
SMALL = {"num_layers": 1, "num_heads": 2, "embed_dim": 8}


def classification(folder):
    return images(CNN(channels=(4,), dense=(), num_classes=3), Classification(), **LABELS)


def multi_label(folder):
    task = MultiLabelClassification()
    return images(CNN(channels=(4,), dense=(), num_classes=3), task, label=numbers(2, ROWS, 3))


def adversarial(folder):
    task = AdversarialClassification()
    model = Debiased(MLP(widths=(8,), features=3))
    return images(model, task, **LABELS, group=numbers(2, ROWS)) | {
        "optimizer": Partition(parts=(("predictor", Adam()), ("adversary", Adam())))
    }


def segmentation(folder):
    model = UNet(channels=(4, 4), features=3)
    return images(model, Segmentation(), segmentation_mask=numbers(3, ROWS, 8, 8, 1))


def detection(folder):
    boxes = np.tile(np.array([[1, 1, 5, 5], [0, 0, 0, 0]], np.float32), (ROWS, 1, 1))
    given = {
        "labels": np.zeros((ROWS, 2), np.int32),
        "boxes_mask": np.tile([True, False], (ROWS, 1)),
    }
    return images(UNet(channels=(4, 4), features=6), Detection(num_classes=2), boxes=boxes, **given)


def variational(folder):
    return images(VAE((8,), latent_dim=2, features=64), VariationalAutoencoding(), **LABELS)


def diffusion(folder):
    return images(Denoiser(), Diffusion(num_classes=3, sampler=Euler(2)), **LABELS)


def gan(folder):
    parts = Partition(parts=(("generator", Adam()), ("critic", Adam())))
    return images(DCGAN(shape=(8, 8, 1), critic_channels=(4, 4)), GAN(), **LABELS) | {
        "optimizer": parts
    }


def encoder(folder):
    model = Projected(CNN(channels=(4,), dense=(), num_classes=6), MLP((8,), 4))
    return images(model, Embedding(), Views(2), **LABELS)


def masked_autoencoder(folder):
    model = MaskedAutoencoder(
        patch_size=2, **SMALL, decoder_layers=1, decoder_heads=2, decoder_dim=4
    )
    return images(model, MaskedAutoencoding(), **LABELS)


def sounds(folder):
    form = MelSpectrogram(sample_rate=1000, n_fft=64, hop_length=32, n_mels=10)
    transform = AudioFeatures(spectrogram=form, channel_axis=True)
    return {
        "model": CNN(channels=(4,), dense=(), num_classes=3),
        "task": Classification(inputs="audio"),
        "data": arrays(transform, audio=draw(ROWS, 400) - 0.5, **LABELS),
    }


def speech(folder):
    form = MelSpectrogram(sample_rate=1000, n_fft=64, hop_length=25, n_mels=10)
    text = np.array(["low high", "high", "low low", "high low"] * (ROWS // 4))
    given = {"audio": objects(list(draw(ROWS, 600) - 0.5)), "text": text}
    return {
        "model": SpeechEncoder(num_classes=3, embed_dim=8, kernel_size=3, dilations=(1,), stride=2),
        "task": CTC(scored=()),
        "data": Speech(
            Arrays({"train": given, "validation": given}), encoding=WordLevel(), length=4,
            transforms=(Pad(600, names=("audio",)),),
            device_transforms=(AudioFeatures(spectrogram=form, normalize=False),),
        ),
    }  # fmt: skip


def words(folder):
    text, label = np.array(TEXTS * (ROWS // 4)), numbers(2, ROWS)
    return {
        "model": BagOfWords(vocab_size=30, embed_dim=4),
        "task": BinaryClassification(inputs="tokens"),
        "data": Words(arrays(text=text, label=label), vocab_size=30, length=8),
    }


def masked_language(folder):
    text = np.array(TEXTS * (ROWS // 4))
    return {
        "model": BERT(vocab_size=300, max_position_embeddings=16, **SMALL),
        "task": MaskedLanguageModeling(),
        "data": Texts(
            arrays(text=text, label=numbers(2, ROWS)), encoding=BPE(300), length=16,
            device_transforms=(MaskTokens(vocab_size=300),),
        ),
    }  # fmt: skip


def language(folder):
    return {
        "model": GPT(vocab_size=20, max_position_embeddings=12, **SMALL),
        "task": LanguageModeling(),
        "data": Tokens(arrays(text=np.array([" ".join(TEXTS) * 4])), length=12),
    }


def translation(folder):
    sides = {name: np.array(TEXTS * 2, object) for name in ("en", "de")}
    longer = {name: texts + " " + texts + " " + texts for name, texts in sides.items()}
    return {
        "model": EncoderDecoder(vocab_size=300, max_position_embeddings=32, **SMALL),
        "task": Translation(bleu=()),
        "data": Pairs(
            Arrays({"train": sides, "validation": longer}), encoding=BPE(300),
            max_source_length=16, max_target_length=16,
        ),
        "batch_size": 4,
    }  # fmt: skip


def table(folder, target="kind", **task):
    rng = np.random.default_rng(0)
    rows = [f"{a:.3f},{rng.choice(['red', 'blue'])},{'odd' if a > 1 else 'normal'},{a * 2:.3f}"
            for a in rng.normal(size=80)]  # fmt: skip
    path = csv(folder, "size,color,kind,price", rows)
    return {"data": Table(path, target, columns=("size", "color"), **task)}


def anomalies(folder):
    given = table(folder, train_limits=(("odd", 0),))
    return given | {"model": MLP((8,), 1), "task": AnomalyDetection()}


def regression(folder):
    task = Regression(inputs="x", targets="y")
    return table(folder, "price") | {"model": MLP((8,), 1), "task": task}


def forecast(folder):
    lines = [f"{day},{np.sin(day / 3):.3f}" for day in range(120)]
    return {
        "model": RNN(vocab_size=0, cell="simple", hidden_size=8),
        "task": Forecast(),
        "data": Series(csv(folder, "day,temperature", lines), columns=("temperature",), length=8),
    }


def panel(folder):
    lines = [
        f"{np.datetime64('2024-01-01') + day},{shop},{day % 5},{place + day % 7}"
        for day in range(60)
        for place, shop in enumerate("ab")
    ]
    return {
        "model": Forecaster(RecurrentEncoder(hidden_size=8), features=7),
        "task": QuantileForecast(season=7),
        "data": Panel(
            csv(folder, "when,shop,price,sold", lines), time="when", targets=("sold",),
            series="shop", future=("price",), periods=(168.0,), length=7, horizon=3, season=7,
        ),
    }  # fmt: skip


def choices(folder):
    rng = np.random.default_rng(0)
    lines = [
        f"u{user:02},i{item:02},{at}"
        for user in range(30)
        for at, item in enumerate(rng.permutation(20)[:8])
    ]
    return Interactions(csv(folder, "user,item,time", lines), length=6, num_negatives=5)


def recommendation(folder):
    model = MatrixFactorization(num_users=30, num_items=20, embed_dim=4)
    return {"model": model, "task": NextItem(k=5), "data": choices(folder)}


def next_items(folder):
    model = SASRec(num_items=20, embed_dim=8, num_layers=1)
    return {"model": model, "task": NextItem(k=5), "data": choices(folder)}


KINDS = {
    make.__name__: make
    for make in (
        classification, multi_label, adversarial, segmentation, detection, variational, diffusion,
        gan, encoder, masked_autoencoder, sounds, speech, words, masked_language, language,
        translation, anomalies, regression, forecast, panel, recommendation, next_items,
    )
}  # fmt: skip


def experiment(kind, folder, steps=1):
    """Returns an experiment of a kind of task, whose files are in a folder."""
    settings = {
        "optimizer": Adam(1e-2), "strategy": Single(), "hooks": (Checkpoint(),), "steps": steps,
        "batch_size": 8, "final_train_evaluation": False,
    }  # fmt: skip
    return jdl.Experiment(**settings | KINDS[kind](folder))
