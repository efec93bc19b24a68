"""Shards in a bucket, on moto's S3 server: read through s3fs, whole and in parts, and refused in words."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dist_ssl.data.storage import fetch, manifest, object_store
from dist_ssl.data.storage.address import Address
from dist_ssl.data.storage.fetch import Fetcher, Patience
from dist_ssl.data.storage.read import Reader
from dist_ssl.errors import ConfigError, DataError
from shards.remote_tars import names_of_splits
from tests.readers import access, remote

MOST = 1 << 30


@pytest.fixture(scope="module")
def bucket(demo_shards: Path) -> Iterator[str]:
    """The demo shards in a bucket; the environment leads to its server."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        environment.setenv("AWS_ACCESS_KEY_ID", "test")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "test")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        client = boto3.client("s3")
        client.create_bucket(Bucket="pictures")
        for path in demo_shards.iterdir():
            client.upload_file(str(path), "pictures", f"my set/{path.name}")
        yield "s3://pictures/my set"
    server.stop()


@pytest.mark.parametrize("cached", [True, False])
def test_samples_of_a_bucket_are_those_of_the_folder(
    bucket: str, cached: bool, demo_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "PIECE_BYTES", 9_000)
    monkeypatch.setattr(fetch, "SLOWEST_BYTES", 1)  # each of so small pieces costs a request
    found = access(tmp_path if cached else None)
    split = remote(bucket, found)
    found.check(split, 12, 8)
    with Reader(split, found) as reader, Reader(manifest.read(demo_shards).split("train")) as local:
        assert split.samples.labels.tolist() == local.split.samples.labels.tolist()
        for number in range(60) if cached else (3, 59):
            assert reader.read(number) == local.read(number)
    kept = {path.stem for path in tmp_path.glob("*.tar")}
    assert kept == ({shard.sha256 for shard in split.shards} if cached else set())


def test_a_piece_that_was_cut_short_is_asked_for_again(
    bucket: str, demo_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "PIECE_BYTES", 1_000)
    monkeypatch.setattr(fetch, "SLOWEST_BYTES", 1)  # each of so small pieces costs a request
    found, short = access(None), {3, 5}
    address = Address.parse(bucket) / "manifest.json"
    store = found.fetcher.source(address)
    assert isinstance(store, object_store.Store)
    whole = store.files.cat_file

    def cut(path: str, start: int, end: int) -> bytes:
        data: bytes = whole(path, start=start, end=end)
        return data[:10] if start // 1_000 in short and not short.discard(start // 1_000) else data

    monkeypatch.setattr(store.files, "cat_file", cut)
    name = manifest.read(demo_shards).split("train").shards[0].name
    assert found.fetcher.read(Address.parse(bucket) / name, MOST) == (demo_shards / name).read_bytes()
    assert found.fetcher.counts.take()["fetch_retries"] == 2


def test_a_store_that_gives_nothing_is_given_up(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = access(None, tries=2)
    address = Address.parse(bucket) / "manifest.json"
    store = found.fetcher.source(address)
    assert isinstance(store, object_store.Store)
    monkeypatch.setattr(store.files, "cat_file", lambda path, start, end: b"")
    with pytest.raises(DataError, match=r"could not be fetched in 2 tries: .* was cut short after 0 bytes"):
        found.fetcher.read(address, MOST)


def test_what_is_not_there_is_named_at_once(bucket: str) -> None:
    for address in ("s3://pictures/other/x.tar", "s3://nobody/x.tar"):
        with pytest.raises(DataError, match=f"{address} does not exist") as caught:
            Fetcher().read(Address.parse(address), MOST)
        assert "data.path" in caught.value.remedy


def test_a_store_that_does_not_answer_is_tried_again_and_named(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    fetcher = Fetcher(Patience(2, 0.001, stall_seconds=0.3))
    with pytest.raises(DataError, match="s3://pictures/x could not be fetched in 2 tries") as caught:
        fetcher.read(Address.parse(bucket.rpartition("/")[0]) / "x", MOST)
    assert "resume the run" in caught.value.remedy
    assert fetcher.counts.take()["fetch_retries"] == 1


@pytest.mark.parametrize(("scheme", "package"), [("s3", "s3fs"), ("gs", "gcsfs")])
def test_a_missing_package_is_named(scheme: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=f"{scheme}:// needs the package {package}") as caught:
        Fetcher().read(Address.parse(f"{scheme}://bucket/x"), MOST)
    assert f"dist_ssl[{scheme}]" in caught.value.remedy


def test_in_a_bucket_the_names_tell_the_splits(bucket: str) -> None:
    found = names_of_splits(Address.parse(bucket), None, None, Fetcher())
    assert set(found) == {"train", "val"}
    assert all(name.startswith(split) for split, names in found.items() for name in names)
    only = names_of_splits(Address.parse(bucket), "train-00000[01].tar", None, Fetcher())
    assert only == {"train": ["train-000000.tar", "train-000001.tar"]}
