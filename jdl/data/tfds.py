"""TensorFlow Datasets, read from array_record without TensorFlow."""

import functools
import importlib
import json
import logging
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jdl.data.base import Data, default_data_dir, get_split
from jdl.data.fingerprints import hash_files
from jdl.data.recipes import RECIPES, Recipe
from jdl.data.sources import Example, Source
from jdl.errors import UserError, first_line, nearest


def check_tfds() -> None:
    """Imports `tensorflow_datasets`, which is slow.

    Raises:
      UserError: a package that it needs is missing; by itself it would only lack its functions.
    """
    try:
        importlib.import_module("tensorflow_datasets.public_api")
    except ImportError as error:
        raise UserError(
            f"tensorflow_datasets cannot be imported ({first_line(error)}): install it anew, with "
            "what it depends on, by `pip install --force-reinstall tensorflow-datasets`"
        ) from error


@dataclass(frozen=True)
class TFDSSource:
    """A split of a prepared data set; picklable, for worker processes."""

    directory: Path
    split: str

    @functools.cached_property
    def _source(self) -> Any:
        logging.getLogger("absl").setLevel(logging.ERROR)  # advice about OpenCV
        check_tfds()
        import tensorflow_datasets as tfds

        builder: Any = tfds.builder_from_directory(self.directory)
        return builder.as_data_source(self.split)

    def __len__(self) -> int:
        """Number of examples."""
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        """The decoded example at `index`."""
        return self._source[index]

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        """The decoded examples at `indices`."""
        return self._source.__getitems__(indices)

    def __getstate__(self) -> dict[str, Any]:
        """Drops the open files."""
        return {"directory": self.directory, "split": self.split}


@dataclass(frozen=True, kw_only=True)
class TFDS(Data):
    """A prepared set of the TFDS catalogue: `TFDS("mnist")`, `TFDS("imdb_reviews/plain_text")`.

    Examples hold the features of the catalogue, images decoded to uint8.
    """

    name: str = field(kw_only=False)  # NAME, NAME/CONFIG or NAME:VERSION
    data_dir: str | None = None  # of prepared sets; None: TFDS_DATA_DIR or ~/tensorflow_datasets
    download: bool = False  # download and prepare the set if missing
    class_names: tuple[str, ...] = ()
    """In the order of their numbers; (): those of the catalogue."""

    locations = ("data_dir", "download")

    def load(self) -> dict[str, Source]:
        """Returns the prepared splits.

        Raises:
          UserError: the set is missing, or its format needs TensorFlow.
        """
        directory, names = self._prepared()
        if "train" not in names:
            raise UserError(f"{directory} has no split 'train' (it has {', '.join(names)})")
        kept = [name for name in names if name in ("train", "validation", "test")]
        return {name: TFDSSource(directory, name) for name in kept}

    def split(self, name: str) -> Source:
        """Returns one split, also one of other names, such as `unlabelled` of `stl10`."""
        directory, names = self._prepared()
        if name in ("train", "validation", "test") or name not in names:
            return get_split({**dict.fromkeys(names), **self.splits()}, name)
        return TFDSSource(directory, name)

    def _prepared(self) -> tuple[Path, list[str]]:
        """Returns the directory of the set and the names of its splits.

        Raises:
          UserError: the set is missing, or its format needs TensorFlow.
        """
        directory = self.directory()
        info = _read_info(directory)
        if info.get("fileFormat") != "array_record":
            root = self.root()
            out = root.with_name(f"{root.name}_array_record") / directory.relative_to(root)
            raise UserError(
                f"{directory} was prepared as {info.get('fileFormat', 'tfrecord')}, which only "
                f"TensorFlow reads: where that is installed, convert it with `tfds convert_format "
                f"--dataset_version_dir={directory} --out_file_format=array_record "
                f"--out_dir={out}`, and name the new place with --data.data-dir"
            )
        return directory, [split["name"] for split in info.get("splits", [])]

    def full_name(self) -> str:
        """Name and version, such as `mnist:3.0.1`."""
        try:
            return f"{self._stem()}:{self.directory().name}"
        except UserError:
            return self.name

    def output_names(self) -> tuple[str, ...]:
        """`class_names`, or those of the feature `label`, else `objects/label`, but no ids."""
        if self.class_names:
            return self.class_names
        if self.fitted_values is not None:
            return tuple(self.fitted_values["classes"])
        check_tfds()
        import tensorflow_datasets as tfds

        builder: Any = tfds.builder_from_directory(self.directory())
        features = dict(builder.info.features.items())
        nested = dict(getattr(features.get("objects"), "items", dict)())
        label = features.get("label", nested.get("label"))
        names = tuple(label.names) if isinstance(label, tfds.features.ClassLabel) else ()
        return () if names == tuple(map(str, range(len(names)))) else names

    def directory(self) -> Path:
        """Directory of the prepared version, prepared now with `download`.

        Raises:
          UserError: it is missing; the message tells how to get it.
        """
        root = self.root()
        found = self._find(root)
        if found is None and self.download:
            prepared = self._download(root)
            found = self._find(root)
            if found is None:
                _, _, version = self.name.partition(":")
                raise UserError(
                    f"{self.name!r}: version {version} is not available; available: {prepared.name}"
                )
        if found is None:
            raise UserError(self._missing(root))
        return found

    def root(self) -> Path:
        """Directory of prepared data sets."""
        return Path(self.data_dir).expanduser() if self.data_dir else default_data_dir()

    def digest(self, source: Source) -> str:
        """SHA-256 over names, sizes and bytes of the split's files."""
        if not isinstance(source, TFDSSource):
            return super().digest(source)
        paths = sorted(source.directory.glob(f"*-{source.split}.*"))
        return hash_files([(path, f"{path.name} {path.stat().st_size}") for path in paths])

    def needs(self) -> str:
        """The command that writes the set."""
        return self._command()

    def _download(self, root: Path) -> Path:
        """Prepares the set: those of `prepare` without TensorFlow, others with TFDS' builder."""
        from jdl.data.prepare import prepare

        if recipe := self._recipe():
            return prepare(recipe.name, data_dir=root)
        check_tfds()
        import tensorflow_datasets as tfds

        try:
            builder = tfds.builder(self.name, data_dir=root, file_format="array_record")
            builder.download_and_prepare()
        except Exception as error:
            raise UserError(
                f"data set {self.name!r} could not be prepared: {first_line(error)}"
            ) from error
        return Path(builder.data_dir)

    def _missing(self, root: Path) -> str:
        have = {path.name for path in root.glob("*") if path.is_dir()}
        known = {recipe.name for recipe in RECIPES}
        name = self._stem().split("/")[0]
        hint = "" if name in have | known else nearest(name, have | known)
        return (
            f"data set {self.name!r} is not in {root}{hint}: write it there with "
            f"`{self._command()}`, or name its directory with --data.data-dir or TFDS_DATA_DIR"
        )

    def _command(self) -> str:
        """Returns the command that writes the set to its directory of data sets."""
        place = shlex.quote(str(self.data_dir)) if self.data_dir else ""
        recipe, version = self._recipe(), self.name.partition(":")[2]
        if recipe and version in ("", recipe.version):
            return f"jdl prepare {recipe.name}" + (f" --data-dir {place}" if place else "")
        command = f"tfds build {self.name} --file_format=array_record"
        return command + (f" --data_dir={place}" if place else "")

    def _recipe(self) -> Recipe | None:
        """Returns how `jdl prepare` writes the set, in whatever version; None if it does not."""
        names = {name: r for r in RECIPES for name in (r.name, f"{r.name}/{r.config}")}
        return names.get(self._stem())

    def _stem(self) -> str:
        return self.name.split(":")[0]

    def _find(self, root: Path) -> Path | None:
        stem, _, version = self.name.partition(":")
        pattern = version or "[0-9]*.[0-9]*.[0-9]*"
        places = [root / stem, *(root / stem).glob("[!0-9.]*")]
        found = [p.parent for place in places for p in place.glob(f"{pattern}/dataset_info.json")]
        return max(found, key=_version, default=None)


def _version(directory: Path) -> list[int]:
    return [int(part) for part in directory.name.split(".") if part.isdigit()]


def _read_info(directory: Path) -> dict[str, Any]:
    try:
        return json.loads((directory / "dataset_info.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{directory}/dataset_info.json cannot be read: {error}") from error
