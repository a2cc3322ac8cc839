"""Writes public data sets in TensorFlow Datasets' prepared layout, and fetches public files.

The catalogue's own builders of MNIST, CIFAR-10 and Cats vs Dogs decode and encode with TensorFlow.
Here images arrive encoded and the records are written as array_record, for which TFDS needs none.
Names, versions, features, splits and the order of the examples are the catalogue's, but for sets
that it lacks, and those of more than 1,000 MiB a split, whose examples stay in their originals'
order.
"""

import contextlib
import io
import itertools
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jdl.data import raw as originals
from jdl.data.base import default_data_dir
from jdl.data.download import checksums, fetch
from jdl.data.public_files import FILES, prepare_file
from jdl.data.recipes import RECIPES, Recipe
from jdl.data.tfds import check_tfds
from jdl.errors import UserError, nearest

EXAMPLES_PER_SHARD = 32_768
"""In each file of a large data set."""


def prepare(
    name: str,
    *,
    raw: Path | None = None,
    data_dir: Path | None = None,
    download: bool = True,
    overwrite: bool = False,
    report: Callable[[str], object] = print,
) -> Path:
    """Writes a data set so that `tfds.builder_from_directory(...)` reads it, or fetches a file.

    The data set appears under its name only when it is complete: a run that is killed leaves
    nothing but a hidden folder beside it.

    Args:
      name: a name of `recipes.RECIPES` or `public_files.FILES`.
      raw: file or directory with the originals; None to take them from
        `DATA_DIR/downloads/NAME`, where they are downloaded to if they are not there.
      data_dir: directory of prepared data sets; by default `$TFDS_DATA_DIR`, or else
        `~/tensorflow_datasets`.
      download: whether to download what is missing.
      overwrite: whether to replace a data set that is already there.
      report: called with a sentence per action.

    Returns:
      The directory of the data set's version, such as `DATA_DIR/mnist/3.0.1`, or the file.

    Raises:
      UserError: unknown name; originals that are missing, damaged or cannot be downloaded; a
        directory that cannot be written.
    """
    root = Path(data_dir or default_data_dir()).expanduser()
    if file := next((file for file in FILES if file.name == name), None):
        return prepare_file(
            file, root, raw=raw, download=download, overwrite=overwrite, report=report
        )
    recipe = _recipe(name)
    target = root / recipe.path
    if target.exists() and not overwrite:
        if not (target / "dataset_info.json").is_file():
            raise UserError(f"{target} exists but is not a prepared data set: remove it first")
        report(f"{target} is already prepared")
        return target
    if raw is not None:
        source = raw.expanduser()
    else:
        source = root / "downloads" / recipe.name
        if download:
            fetch(recipe.urls, source, known=checksums(recipe.name), report=report)
    splits = recipe.read(source)
    try:
        counts, skipped = _write(recipe, splits, root)
    except (OSError, RuntimeError) as error:  # array_record raises RuntimeError if the disk is full
        reason = getattr(error, "strerror", None) or str(error).split(";")[0]
        raise UserError(f"cannot write in {root} ({reason})") from error
    report(f"prepared {target}: {_listed(counts)} examples")
    if skipped:
        report(f"skipped {skipped:,} damaged examples")
    if counts != recipe.examples:
        report(f"these are not all: the complete data set has {_listed(recipe.examples)}")
    return target


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{split} {count:,}" for split, count in counts.items())


def _recipe(name: str) -> Recipe:
    names = {recipe.name: recipe for recipe in RECIPES}
    if name not in names:
        known = [*names, *(file.name for file in FILES)]
        raise UserError(
            f"unknown data set {name!r}{nearest(name, known)} (there are {', '.join(known)})"
        )
    return names[name]


def _write(recipe: Recipe, splits: originals.Splits, root: Path) -> tuple[dict[str, int], int]:
    """Writes the splits to a temporary directory, then renames it.

    Returns:
      The number of examples in each split, and the number skipped.
    """
    target = root / recipe.path
    target.parent.mkdir(parents=True, exist_ok=True)
    # TFDS ignores version folders whose name begins with a dot.
    with tempfile.TemporaryDirectory(prefix=".incomplete-", dir=target.parent) as scratch:
        skipped = Counter()
        builder = _builder(recipe, splits, Path(scratch), skipped)
        with contextlib.redirect_stdout(io.StringIO()):  # it names the temporary directory
            if recipe.is_large:
                _write_in_order(recipe, splits, builder.info)
            else:
                builder.download_and_prepare()
        counts = {split: info.num_examples for split, info in builder.info.splits.items()}
        if recipe.config:
            default = Path(recipe.name, ".config")
            shutil.copytree(scratch / default, root / default, dirs_exist_ok=True)
        if target.exists():
            target.rename(Path(scratch, "replaced"))
        Path(builder.data_dir).rename(target)
    return counts, skipped.total()


def _write_in_order(recipe: Recipe, splits: originals.Splits, info: Any) -> None:
    """Writes examples as they come, since TFDS sorts more than 1,000 MiB with TensorFlow."""
    import tensorflow_datasets as tfds

    Path(info.data_dir).mkdir(parents=True)
    writer = tfds.core.SequentialWriter(info, EXAMPLES_PER_SHARD, file_format="array_record")
    writer.initialize_splits(list(splits))
    for split, examples in splits.items():
        count = 0
        while some := [example for _, example in itertools.islice(examples, 1024)]:
            writer.add_examples({split: some})  # which writes all metadata each time
            count += len(some)
        if not count:
            raise UserError(f"the originals of {recipe.name} have no examples of {split!r}")
    writer.close_all()


def _builder(
    recipe: Recipe, splits: originals.Splits, data_dir: Path, skipped: Counter[str]
) -> Any:
    """Returns a TFDS builder that writes the splits and counts skipped examples in `skipped`."""
    check_tfds()
    import tensorflow_datasets as tfds

    class Prepared(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Stands in for the catalogue's builder of the same name."""

        name = recipe.name
        VERSION = tfds.core.Version(recipe.version)
        BUILDER_CONFIGS = (
            [tfds.core.BuilderConfig(name=recipe.config, version=recipe.version)]
            if recipe.config
            else []
        )

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(
                builder=self,
                description=recipe.description,
                features=tfds.features.FeaturesDict(recipe.features(tfds.features)),
                supervised_keys=recipe.supervised,
                homepage=recipe.homepage,
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            del dl_manager  # the originals are there
            return {split: self._generate_examples(split) for split in splits}

        def _generate_examples(self, split: str) -> Iterator[tuple[int | str, originals.Example]]:
            empty = True
            for key, example in splits[split]:
                if example is None:
                    skipped[split] += 1
                    continue
                empty = False
                yield key, example
            if empty:
                raise UserError(f"the originals of {recipe.name} have no examples of {split!r}")

    # TFDS sorts in memory up to 1,000 MiB a split, which all of these data sets stay below; for
    # more it would need TensorFlow.
    return Prepared(data_dir=data_dir, file_format="array_record")
