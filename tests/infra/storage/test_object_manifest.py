"""A bucket versioned by a manifest: what changes in the one changes little in the other."""

import pytest

from components.errors import DataError
from infra.storage.buckets import mirror_prefix
from infra.storage.object_manifest import MANIFEST, Ingested, ingest, read
from pipelines import ingest as verb

URI = "s3://bucket/set"


@pytest.fixture
def bucket(s3):
    s3.put_bucket_versioning(Bucket="bucket", VersioningConfiguration={"Status": "Enabled"})
    put(s3, **{f"{number:02d}.png": bytes([number]) for number in range(25)})
    return s3


def put(s3, **contents: bytes) -> None:
    for name, content in contents.items():
        s3.put_object(Bucket="bucket", Key=f"set/{name}", Body=content)


def texts(folder) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_added_images_change_new_shards_alone(bucket, tmp_path):
    folder = tmp_path / "set.objects"
    assert ingest(URI, folder, shard=10) == Ingested(25, 25, 0, 0, 3)
    before = texts(folder)
    put(bucket, **{"00-first.png": b"a", "zz.png": b"b"})  # also one that sorts before all others
    assert ingest(URI, folder, shard=10) == Ingested(27, 2, 0, 0, 1)
    after = texts(folder)
    assert {name for name in after if after[name] != before.get(name)} == {"00003.jsonl", MANIFEST}


def test_nothing_new_changes_nothing(bucket, tmp_path):
    folder = tmp_path / "set.objects"
    ingest(URI, folder, shard=10)
    before = texts(folder)
    assert ingest(URI, folder, shard=10) == Ingested(25, 0, 0, 0, 0)
    assert texts(folder) == before


def test_replaced_and_removed_images_change_their_own_shards(bucket, tmp_path):
    folder = tmp_path / "set.objects"
    ingest(URI, folder, shard=10)
    put(bucket, **{"03.png": b"new"})
    bucket.delete_object(Bucket="bucket", Key="set/24.png")
    assert ingest(URI, folder, shard=10) == Ingested(24, 0, 1, 1, 2)
    for number in range(20, 24):
        bucket.delete_object(Bucket="bucket", Key=f"set/{number}.png")
    put(bucket, **{"later.png": b"1"})
    ingest(URI, folder, shard=10)
    assert sorted(read(folder, URI)) == [0, 1, 3], "the number of a shard that is gone is not used again"


def test_the_versions_that_are_listed_are_fetched_whatever_came_later(bucket, tmp_path):
    folder = tmp_path / "set.objects"
    ingest(URI, folder)
    put(bucket, **{"03.png": b"replaced", "new.png": b"new"})
    bucket.delete_object(Bucket="bucket", Key="set/04.png")
    only = [item for part in read(folder, URI).values() for item in part]
    mirror_prefix(URI, tmp_path / "local", only=only)
    fetched = {path.name: path.read_bytes() for path in (tmp_path / "local").iterdir()}
    assert fetched == {f"{number:02d}.png": bytes([number]) for number in range(25)}


def test_a_bucket_without_versions_is_known_by_its_etags(s3, tmp_path):
    put(s3, a=b"1")
    ingest(URI, tmp_path / "set")
    put(s3, a=b"2")
    assert ingest(URI, tmp_path / "set") == Ingested(1, 0, 1, 0, 1)
    put(s3, a=b"3")
    only = read(tmp_path / "set", URI)[0]
    with pytest.raises(DataError, match="not there as it was listed"):
        mirror_prefix(URI, tmp_path / "local", only=only)


def test_what_cannot_be_used(s3, tmp_path):
    with pytest.raises(DataError, match="holds no object"):
        ingest(URI, tmp_path / "set")
    put(s3, a=b"1")
    ingest(URI, tmp_path / "set")
    with pytest.raises(DataError, match="lists s3://bucket/set, not s3://bucket/other"):
        ingest("s3://bucket/other", tmp_path / "set")
    (tmp_path / "set" / MANIFEST).write_text("{")
    with pytest.raises(DataError, match="not a manifest"):
        read(tmp_path / "set", URI)


def test_the_command(s3, tmp_path, monkeypatch, capsys):
    put(s3, a=b"1")
    monkeypatch.chdir(tmp_path)
    verb.main([f"{URI}/"])
    assert capsys.readouterr().out == (
        "data/raw/bucket/set.objects: 1 objects, 1 new, 0 replaced, 0 removed; 1 shards written\n"
    )
    assert (tmp_path / "data/raw/bucket/set.objects" / MANIFEST).is_file()
