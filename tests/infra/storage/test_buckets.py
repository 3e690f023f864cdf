import hashlib
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.errors import DataError
from infra.storage import buckets
from infra.storage.buckets import Mirrored, Remote, mirror_prefix
from tests.infra.s3 import post

URI = "s3://bucket/set"
pytestmark = pytest.mark.usefixtures("no_aws")


def put(s3, **contents: bytes) -> None:
    for name, content in contents.items():
        s3.put_object(Bucket="bucket", Key=f"set/{name}", Body=content)


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(tmp_path: Path, uri: str = URI) -> str:
    """The one line with which a mirror run ends, within seconds and without leaving a file."""
    start = time.monotonic()
    with pytest.raises(DataError) as caught:
        mirror_prefix(uri, tmp_path / "local")
    assert time.monotonic() - start < 10
    assert uri in str(caught.value) and "\n" not in str(caught.value)
    assert not files_of(tmp_path / "local")
    return str(caught.value)


def test_more_objects_than_a_page_holds(s3, tmp_path):
    keys = [f"set/{number % 7}/{number}.bin" for number in range(1003)] + ["set2/other.bin", "set"]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: s3.put_object(Bucket="bucket", Key=key, Body=key.encode()), keys))
    assert mirror_prefix(URI, tmp_path / "local") == Mirrored(1003, 1003, 0)
    assert files_of(tmp_path / "local") == {key[4:]: key.encode() for key in keys[:1003]}
    assert mirror_prefix(f"{URI}/", tmp_path / "local") == Mirrored(1003, 0, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["local", "local.index.jsonl"]


def test_the_folder_follows_the_bucket(s3, tmp_path):
    put(s3, **{"a": b"1", "b": b"2", "sub/c": b"3"})
    s3.put_object(Bucket="bucket", Key="set/sub/", Body=b"")  # how consoles make a folder
    local = tmp_path / "local"
    assert mirror_prefix(URI, local) == Mirrored(3, 3, 0)
    s3.delete_object(Bucket="bucket", Key="set/sub/c")
    put(s3, a=b"new", d=b"4", sub=b"a file where a folder was")
    assert mirror_prefix(URI, local) == Mirrored(4, 3, 1)
    assert files_of(local) == {"a": b"new", "b": b"2", "d": b"4", "sub": b"a file where a folder was"}


@pytest.mark.parametrize("multipart", [False, True])
def test_an_altered_local_file_is_fetched_again(s3, tmp_path, multipart):
    put(s3, a=b"right", b=b"right")
    if multipart:
        upload = s3.create_multipart_upload(Bucket="bucket", Key="set/a")["UploadId"]
        part = s3.upload_part(Bucket="bucket", Key="set/a", UploadId=upload, PartNumber=1, Body=b"right")
        parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
        s3.complete_multipart_upload(Bucket="bucket", Key="set/a", UploadId=upload, MultipartUpload=parts)
        assert "-" in s3.head_object(Bucket="bucket", Key="set/a")["ETag"]
    local = tmp_path / "local"
    mirror_prefix(URI, local)
    assert mirror_prefix(URI, local).num_fetched == 0
    (local / "a").write_bytes(b"wrong")  # as long as the object
    (local / "b").write_bytes(b"rig")
    assert mirror_prefix(URI, local) == Mirrored(2, 2, 0)
    assert files_of(local) == {"a": b"right", "b": b"right"}


def test_a_run_that_broke_off_is_resumed(s3, tmp_path, monkeypatch):
    put(s3, **{f"{number}": b"x" * number for number in range(8)})
    real = buckets.download

    def breaking(client, bucket, remote, target):
        if remote.name == "5":
            target.write_bytes(b"xx")
            raise KeyboardInterrupt
        real(client, bucket, remote, target)

    monkeypatch.setattr(buckets, "download", breaking)
    local = tmp_path / "local"
    with pytest.raises(KeyboardInterrupt):
        mirror_prefix(URI, local, workers=1)
    present = files_of(local)
    assert {"0", "1", "2", "3", "4"} <= set(present) and "5" not in present
    assert all(content == b"x" * int(name) for name, content in present.items())  # whole files alone
    monkeypatch.setattr(buckets, "download", real)
    assert mirror_prefix(URI, local, workers=1) == Mirrored(8, 8 - len(present), 0)
    assert files_of(local) == {f"{number}": b"x" * number for number in range(8)}


def test_a_file_without_a_record_is_known_by_its_md5(s3, tmp_path):
    put(s3, a=b"right", b=b"right")
    local = tmp_path / "local"
    local.mkdir()
    (local / "a").write_bytes(b"right")
    (local / "b").write_bytes(b"wrong")
    (tmp_path / "local.index.jsonl").write_text('{"name": "b", "etag"')  # cut off
    assert mirror_prefix(URI, local) == Mirrored(2, 1, 0)
    assert files_of(local) == {"a": b"right", "b": b"right"}


@pytest.mark.parametrize("num_failures", [1, buckets.BODY_ATTEMPTS])
def test_a_damaged_body_is_asked_for_again_a_few_times(s3, tmp_path, monkeypatch, num_failures):
    put(s3, a=b"right")
    real_client, failures = buckets.connect, iter(range(num_failures))
    monkeypatch.setattr(buckets.time, "sleep", lambda seconds: None)

    def client_of(config):
        client = real_client(config)
        real_get = client.get_object

        def get_object(**request):
            answer = real_get(**request)
            if next(failures, None) is not None:
                body = answer["Body"].read()
                answer["Body"] = type("Body", (), {"iter_chunks": lambda self, size: [body[:-1] + b"?"]})()
            return answer

        client.get_object = get_object
        return client

    monkeypatch.setattr(buckets, "connect", client_of)
    if num_failures < buckets.BODY_ATTEMPTS:
        assert mirror_prefix(URI, tmp_path / "local").num_fetched == 1
        assert files_of(tmp_path / "local") == {"a": b"right"}
    else:
        with pytest.raises(DataError, match="s3://bucket/set/a: content with md5 .* expected .* in a row"):
            mirror_prefix(URI, tmp_path / "local")
        assert not files_of(tmp_path / "local")


def test_an_object_replaced_since_it_was_listed_is_not_taken(s3, tmp_path, monkeypatch):
    put(s3, a=b"old")
    real = buckets.list_objects

    def list_then_replace(client, bucket, prefix):
        found = real(client, bucket, prefix)
        put(s3, a=b"new")
        return found

    monkeypatch.setattr(buckets, "list_objects", list_then_replace)
    assert "not there as it was listed" in refused(tmp_path)


class TestRefusals:
    def test_missing_bucket(self, s3, tmp_path):
        assert "there is no such bucket" in refused(tmp_path, "s3://absent/set")

    def test_empty_prefix_leaves_an_earlier_copy_alone(self, s3, tmp_path):
        put(s3, a=b"1")
        assert "holds no object" in refused(tmp_path, "s3://bucket/se")
        mirror_prefix(URI, tmp_path / "local")
        with pytest.raises(DataError, match="holds no object"):
            mirror_prefix("s3://bucket/absent", tmp_path / "local")
        assert files_of(tmp_path / "local") == {"a": b"1"}

    def test_wrong_key(self, s3, endpoint, tmp_path):
        put(s3, a=b"1")
        post(f"{endpoint}/moto-api/reset-auth", b"0")  # from now on the store checks who asks
        try:
            assert "access refused (InvalidAccessKeyId" in refused(tmp_path)
        finally:
            post(f"{endpoint}/moto-api/reset-auth", b"inf")

    def test_no_credentials(self, endpoint, tmp_path, monkeypatch):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        assert "expected AWS_ACCESS_KEY_ID" in refused(tmp_path)

    @pytest.mark.parametrize(
        ("address", "told"),
        [
            ("http://127.0.0.1:9", "cannot be reached"),
            ("http://no-such-host.invalid", "cannot be reached"),
            ("nonsense", "expected AWS_ENDPOINT_URL"),
        ],
    )
    def test_unreachable_endpoint(self, s3, tmp_path, monkeypatch, address, told):
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        assert told in refused(tmp_path)

    @pytest.mark.parametrize("name", ["../out", "a/../../out", "/out", "a//b", "./a"])
    def test_keys_that_are_no_paths_inside_the_folder(self, s3, tmp_path, name):
        page = {"Contents": [{"Key": f"set/{name}", "Size": 1, "ETag": '"x"'}]}
        paginator = type("Paginator", (), {"paginate": lambda self, **request: [page]})()
        client = type("Client", (), {"get_paginator": lambda self, verb: paginator})()
        with pytest.raises(DataError, match="no path inside a folder") as caught:
            buckets.list_objects(client, "bucket", "set/")
        assert name in str(caught.value)

    def test_an_escaping_key_writes_nothing(self, s3, tmp_path):
        put(s3, **{"../../../escaped": b"x", "fine": b"x"})
        assert "no path inside a folder" in refused(tmp_path)
        assert list(tmp_path.rglob("*scaped")) == []

    def test_an_object_in_the_way_of_another(self, s3, tmp_path):
        put(s3, **{"a": b"1", "a/b": b"2"})
        assert "object a is in the way of a/b" in refused(tmp_path)

    @pytest.mark.parametrize("uri", ["bucket/set", "s3://", "s3:///set", "http://bucket/set"])
    def test_what_is_no_address(self, tmp_path, uri):
        with pytest.raises(DataError, match="expected s3://bucket/prefix"):
            mirror_prefix(uri, tmp_path / "local")


@given(content=st.binary(max_size=50), etag=st.sampled_from(["md5", "multipart"]), altered=st.booleans())
def test_without_a_record_only_an_md5_proves_a_file(tmp_path_factory, content, etag, altered):
    path = tmp_path_factory.getbasetemp() / "file"
    path.write_bytes(bytes(255 - byte for byte in content) if altered else content)
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    remote = Remote("k", "k", len(content), md5 if etag == "md5" else f"{md5}-2")
    assert buckets.is_current(path, remote, None) == (etag == "md5" and not (altered and content))


def test_the_last_record_of_a_name_counts(tmp_path):
    index = tmp_path / "index.jsonl"
    records = [{"name": "a", "etag": etag, "size": 1, "mtime_ns": 2} for etag in ("old", "new")]
    index.write_text("\n".join([*map(json.dumps, records), '{"name": "a"}', "[]", ""]))
    assert buckets.read_index(index)["a"].etag == "new"
    assert buckets.read_index(tmp_path / "absent") == {}
