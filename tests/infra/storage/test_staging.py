"""Inputs in a bucket: sent once, fetched once a node, checked, continued, evicted; with stores that fail."""

import os
import pickle
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from components.artifacts import run_folder
from components.data.dataset import write_manifest, write_shards
from components.data.info import DataInfo
from components.errors import DataError
from components.families.vae import Model as VAE
from components.files import whole_folder
from components.training.ema import copy_of
from components.training.loop import State
from infra.ray_cluster.encoding import Work, actor
from infra.ray_cluster.worker_pool import StagedTask
from infra.storage import staging
from infra.storage.buckets import check_storage
from infra.storage.staging import Staged, evict, fetch, release, stage
from infra.storage.store import Store
from tests.infra.s3 import Faulty, half_a_body, one_in_five, post, serving

STORAGE = "s3://bucket/ray"


@pytest.fixture(autouse=True)
def given_up():
    """What a test fetched may be evicted by the next."""
    yield
    for entry in list(staging._held):
        release(entry)


def write(folder: Path, **contents: bytes) -> Path:
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def keys(s3) -> set[str]:
    return {item["Key"] for item in s3.list_objects_v2(Bucket="bucket").get("Contents", ())}


@pytest.fixture
def folder(tmp_path) -> Path:
    return write(tmp_path / "set", **{"manifest.json": b"{}", "a": b"1" * 5000, "sub/b": b"2" * 7000, "same": b"{}"})


def test_a_folder_goes_there_and_back_and_is_sent_once(s3, folder, tmp_path):
    staged = stage(folder, STORAGE)
    assert files_of(fetch(staged, tmp_path / "node")) == files_of(folder)
    first = keys(s3)
    assert len(first) == 4, "three different files and a listing"
    assert stage(folder, STORAGE) == staged
    (folder / "c").write_bytes(b"3")
    assert stage(folder, STORAGE).hash != staged.hash
    assert len(keys(s3) - first) == 2, "the new file and the new listing alone"


def test_a_file_goes_there_as_a_folder_of_its_own(s3, folder, tmp_path):
    staged = stage(folder / "a", STORAGE)
    assert files_of(fetch(staged, tmp_path / "node")) == {"a": b"1" * 5000}


def test_the_hash_is_of_the_content_alone(s3, folder, tmp_path):
    other = write(tmp_path / "elsewhere", **dict(reversed(files_of(folder).items())))
    os.utime(other / "a", (0, 0))
    assert stage(other, STORAGE).hash == stage(folder, STORAGE).hash
    (other / "a").rename(other / "z")
    assert stage(other, STORAGE).hash != stage(folder, STORAGE).hash


def test_a_node_fetches_once(s3, folder, tmp_path, monkeypatch):
    staged = stage(folder, STORAGE)
    fetch(staged, tmp_path / "node")
    release(tmp_path / "node" / staged.hash)
    monkeypatch.setattr(staging, "connect", None)
    assert fetch(staged, tmp_path / "node") == tmp_path / "node" / staged.hash


def test_processes_that_want_the_same_input_wait_for_the_one_that_fetches(s3, folder, tmp_path, endpoint):
    counting = Faulty(lambda number, environ, application, start: application(environ, start))
    staged = stage(folder, STORAGE)
    script = f"""
import sys
from pathlib import Path
from infra.storage.staging import Staged, fetch
folder = fetch(Staged({STORAGE!r}, {staged.hash!r}), Path({str(tmp_path / "node")!r}))
print(sorted(path.name for path in folder.iterdir()))
"""
    with serving(counting) as address:
        changed = {**os.environ, "AWS_ENDPOINT_URL": address}
        several = [
            subprocess.Popen([sys.executable, "-c", script], env=changed, stdout=subprocess.PIPE) for _ in range(3)
        ]
        answers = {process.communicate()[0] for process in several}
    assert answers == {b"['a', 'manifest.json', 'same', 'sub']\n"}
    fetched = [path for method, path, _ in counting.calls if method == "GET" and "/files/" in path]
    assert len(fetched) == 4, "each file of the folder once for all three"


def test_a_fetch_that_breaks_off_is_continued_where_it_stopped(s3, tmp_path, monkeypatch):
    content = os.urandom(3 << 20)
    staged = stage(write(tmp_path / "set", a=content), STORAGE)
    broken = Faulty(half_a_body)
    with serving(broken) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        assert (fetch(staged, tmp_path / "node") / "a").read_bytes() == content
    ranges = [found for method, path, found in broken.calls if method == "GET" and "/files/" in path]
    assert ranges[0] is None and 0 < int(ranges[1].removeprefix("bytes=").removesuffix("-")) <= len(content) // 2


@pytest.mark.parametrize("what", ["file", "listing"])
def test_what_was_altered_in_the_bucket_is_refused(s3, folder, tmp_path, monkeypatch, what):
    staged = stage(folder, STORAGE)
    (key,) = (
        [key for key in keys(s3) if staging.sha256(folder / "a") in key]
        if what == "file"
        else [f"ray/inputs/{staged.hash}.json"]
    )
    s3.put_object(Bucket="bucket", Key=key, Body=b"0" * 5000)
    monkeypatch.setattr(staging.time, "sleep", lambda seconds: None)
    with pytest.raises(DataError, match="sha256") as told:
        fetch(staged, tmp_path / "node")
    assert key in str(told.value) and "\n" not in str(told.value)
    assert not (tmp_path / "node" / staged.hash).exists(), "whole or not at all"


def test_one_call_in_five_fails_and_nobody_notices(s3, tmp_path, monkeypatch):
    folder = write(tmp_path / "set", **{f"{number}": bytes([number]) * 100 for number in range(12)})
    failing = Faulty(one_in_five)
    with serving(failing) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        check_storage(STORAGE)
        staged = stage(folder, STORAGE)
        assert files_of(fetch(staged, tmp_path / "node")) == files_of(folder)
        run = Store.open(STORAGE) / "run" / "checkpoint_1"  # what Ray Train stores checkpoints through
        run.write("state.pt", b"weights" * 1000)
        with run.on_disk() as local:
            assert (local / "state.pt").read_bytes() == b"weights" * 1000
        assert (Store.open(STORAGE) / "run").names() == ["checkpoint_1"]
        assert (Store.open(STORAGE) / "absent").names() == []
    assert len(failing.calls) > 40


def test_a_store_that_dies_in_the_middle_is_told_and_the_rerun_sends_the_rest(s3, tmp_path, monkeypatch):
    folder = write(tmp_path / "set", **{f"{number:02d}": os.urandom(100) for number in range(30)})
    monkeypatch.setattr(staging, "WORK", {"retries": {"mode": "standard", "max_attempts": 2}, "read_timeout": 5})

    def dies(number, environ, application, start_response):
        if number > 25:
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)  # the connection ends without an answer
            raise ConnectionResetError
        return application(environ, start_response)

    with serving(Faulty(dies)) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        with pytest.raises(DataError, match="s3://bucket/ray: cannot be reached") as told:
            stage(folder, STORAGE)
    assert "\n" not in str(told.value)
    sent = {key for key in keys(s3) if "/files/" in key}
    assert 0 < len(sent) < 30 and not any(key.endswith(".json") for key in keys(s3))
    alive = Faulty(lambda number, environ, application, start: application(environ, start))
    with serving(alive) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        staged = stage(folder, STORAGE)
        assert files_of(fetch(staged, tmp_path / "node")) == files_of(folder)
    puts = [path for method, path, _ in alive.calls if method == "PUT" and "/files/" in path]
    assert len(puts) == 30 - len(sent)


class TestEviction:
    def entries(self, tmp_path, s3, number: int = 3) -> list[Staged]:
        staged = [stage(write(tmp_path / f"set{i}", a=bytes([i]) * 1000), STORAGE) for i in range(number)]
        for age, one in enumerate(staged):
            release(fetch(one, tmp_path / "node"))
            os.utime(tmp_path / "node" / f"{one.hash}.lock", (age, age))
        return staged

    def there(self, tmp_path, staged: list[Staged]) -> list[bool]:
        return [(tmp_path / "node" / one.hash).is_dir() for one in staged]

    def test_the_longest_unused_goes_first(self, s3, tmp_path):
        staged = self.entries(tmp_path, s3)
        release(fetch(staged[0], tmp_path / "node"))  # used again
        evict(tmp_path / "node", 2000)
        assert self.there(tmp_path, staged) == [True, False, True]

    def test_what_is_in_use_stays(self, s3, tmp_path):
        staged = self.entries(tmp_path, s3)
        fetch(staged[1], tmp_path / "node")
        evict(tmp_path / "node", 0)
        assert self.there(tmp_path, staged) == [False, True, False]

    def test_room_is_made_before_a_fetch(self, s3, tmp_path):
        staged = self.entries(tmp_path, s3)
        large = stage(write(tmp_path / "large", a=b"x" * 1500), STORAGE, cache_bytes=2600)
        fetch(large, tmp_path / "node")
        assert self.there(tmp_path, [*staged, large]) == [False, False, True, True]


class TestRefusals:
    def refused(self, place: str) -> str:
        began = time.monotonic()
        with pytest.raises(DataError) as told:
            check_storage(place)
        assert time.monotonic() - began < 10
        assert "\n" not in str(told.value) and place in str(told.value)
        return str(told.value)

    def test_missing_bucket(self, s3):
        assert "there is no such bucket" in self.refused("s3://absent/ray")

    def test_wrong_key(self, s3, endpoint):
        post(f"{endpoint}/moto-api/reset-auth", b"0")  # from now on the store checks who asks
        try:
            assert "access refused (InvalidAccessKeyId" in self.refused(STORAGE)
        finally:
            post(f"{endpoint}/moto-api/reset-auth", b"inf")

    def test_nobody_there(self, s3, monkeypatch):
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        assert "cannot be reached" in self.refused(STORAGE)

    def test_a_folder_needs_no_look(self, tmp_path):
        check_storage(str(tmp_path / "not yet there"))

    def test_an_empty_folder(self, s3, tmp_path):
        (tmp_path / "empty").mkdir()
        with pytest.raises(DataError, match="no file to stage"):
            stage(tmp_path / "empty", STORAGE)


def test_a_store_on_disk_reads_as_one_in_a_bucket(tmp_path):
    run = Store.open(tmp_path) / "run"
    assert run.names() == []
    run.write("a.json", b"1")
    run.write("a.json", b"2")
    assert run.names() == ["a.json"] and run.read("a.json") == b"2"
    with run.on_disk() as folder:
        assert folder == tmp_path / "run"
    with pytest.raises(DataError, match="absent"):
        run.read("absent")


def test_an_encoder_reads_staged_folders_and_leaves_its_shards_in_the_bucket(s3, tmp_path, monkeypatch):
    monkeypatch.setenv(staging.CACHE, str(tmp_path / "node"))
    pixels = np.random.default_rng(0).integers(0, 256, (20, 1, 8, 8), dtype=np.uint8)
    with whole_folder(tmp_path / "images") as working:
        rows = ({"image": image, "label": np.asarray(0)} for image in pixels)
        write_manifest(working, write_shards(working, rows, 12), value_range=(0, 255), classes=("a",))
    family = VAE(VAE.Config(widths=(8, 8), latent_channels=3), DataInfo(shape=(1, 8, 8), classes=("a",)))
    average = copy_of(dict(family.nets))
    provenance = run_folder.Provenance(data="d", code="c", job="j", seed=0, step=1)
    run_folder.write(tmp_path / "vae", "vae", family, State(1, average, {}, average), provenance)
    there, here = Store.open(STORAGE) / "encoded", tmp_path / "latents"
    here.mkdir()
    inputs = [stage(tmp_path / name, STORAGE) for name in ("vae", "images")]
    numbers = {"shard": [0, 1]}
    actor(Work(*inputs, 8), there)(numbers)
    there.copy_to(here)
    (tmp_path / "expected").mkdir()
    actor(Work(tmp_path / "vae", tmp_path / "images", 8), Store.open(tmp_path / "expected"))(numbers)
    assert files_of(here) == files_of(tmp_path / "expected") and len(files_of(here)) == 6


@dataclass(frozen=True)
class Order:
    """As evaluation sends them: paths among its fields."""

    run: Path
    absent: Path | None
    count: int

    def worker(self):
        path = self.run / "a" if self.run.is_dir() else self.run
        return lambda part: path.read_bytes() * (self.count + part)


def test_an_orders_paths_travel_with_it(s3, tmp_path, monkeypatch):
    monkeypatch.setenv(staging.CACHE, str(tmp_path / "node"))
    order = Order(write(tmp_path / "run", a=b"x"), None, 2)
    of_a_file = Order(tmp_path / "run/a", None, 2)
    sent = [pickle.dumps(StagedTask.of(one.worker, STORAGE, 1 << 30)) for one in (order, of_a_file)]
    shutil.rmtree(tmp_path / "run")  # the worker's machine has no such folder
    assert [pickle.loads(one)()(1) for one in sent] == [b"xxx", b"xxx"]
