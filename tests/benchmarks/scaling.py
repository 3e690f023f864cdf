"""What scale asks of the design, measured on one machine: `make bench ONLY=scaling` prints three figures.

order_1b_rows     global batches of a set of a billion rows, with a manifest of 1,000 shards: rows ordered a second, and
                  the memory that a fresh process has added by the end
stage_10k_shards  10,000 shards listed, hashed, staged into a bucket on loopback (moto) and found staged again
workers_1000      1,000 simulated workers: the parts of each global batch are disjoint and complete, over two epochs
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from components.data.dataset import Column, Manifest, Shard, ShardFile
from components.data.permutation import global_batch, share
from infra.storage.staging import list_files, stage
from tests.benchmarks.common import emit
from tests.infra.s3 import KEY, SECRET

ROWS, BATCH, SHARDS = 10**9, 4096, 1000
NUM_SHARDS, SHARD_BYTES = 10_000, 4096
WORKERS = 1000


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def order(batches: int) -> dict[str, float]:
    """In a process of its own: the rate of global batches of ROWS rows, the shards they fall into, and memory."""
    torch.set_num_threads(1)
    global_batch(0, BATCH, 1000, 0)
    before = peak_mib()
    file = ShardFile(path="0.npy", sha256="0" * 64)
    shards = tuple(Shard(rows=ROWS // SHARDS, files={"image": file}) for _ in range(SHARDS))
    manifest = Manifest(
        count=ROWS, columns={"image": Column(shape=(1,), dtype="uint8")}, value_range=(0, 255), shards=shards
    )
    starts = np.cumsum([0, *(shard.rows for shard in manifest.shards)])
    began = time.perf_counter()
    touched = set()
    for step in range(batches):
        rows = global_batch(step, BATCH, manifest.count, 0).numpy()
        assert len(np.unique(rows)) == BATCH and rows.min() >= 0 and rows.max() < ROWS
        touched |= set((np.searchsorted(starts, rows, side="right") - 1).tolist())
    seconds = time.perf_counter() - began
    return {"rate": batches * BATCH / seconds, "added_mib": peak_mib() - before, "shards_touched": len(touched)}


def stage_shards(folder: Path) -> dict[str, float]:
    """Seconds to list and hash NUM_SHARDS files, to stage them, and to find them staged."""
    content = np.random.default_rng(0).bytes(SHARD_BYTES)
    for number in range(NUM_SHARDS):
        (folder / f"{number:05d}.image.npy").write_bytes(number.to_bytes(8, "little") + content)
    began = time.perf_counter()
    listed = list_files(folder, {})
    hashed = time.perf_counter()
    first = stage(folder, "s3://bucket/ray")
    sent = time.perf_counter()
    assert stage(folder, "s3://bucket/ray", known={file.path: file.sha256 for file in listed}) == first
    return {"list_hash_s": hashed - began, "stage_s": sent - hashed, "again_s": time.perf_counter() - sent}


def workers(count: int = 100_000, batch_size: int = 10 * WORKERS + 7) -> dict[str, float]:
    """Seconds in which WORKERS workers drew two epochs, one after the other. Raises AssertionError if parts of a batch
    overlap or miss a row, or an epoch is not a permutation."""
    began = time.perf_counter()
    drawn, steps = [], -(-2 * count // batch_size)
    for step in range(steps):
        batch = global_batch(step, batch_size, count, 0)
        parts = [global_batch(step, batch_size, count, 0, share(batch_size, rank, WORKERS)) for rank in range(WORKERS)]
        assert torch.equal(torch.cat(parts), batch)
        assert {len(part) for part in parts} <= {batch_size // WORKERS, batch_size // WORKERS + 1}
        drawn.append(batch)
    rows = torch.cat(drawn)[: 2 * count]
    assert len(rows[:count].unique()) == len(rows[count:].unique()) == count, "an epoch visits each row once"
    return {"seconds": time.perf_counter() - began, "steps": steps}


def apart(call: str) -> dict[str, float]:
    """A function of this module in a fresh process."""
    command = [sys.executable, "-c", f"import json; from {__spec__.name} import *; print(json.dumps({call}))"]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    found = apart("order(250)")
    emit(
        "order_1b_rows",
        round(found["rate"]),
        "rows/s",
        "bounded memory",
        added_mib=round(found["added_mib"]),
        shards_touched=found["shards_touched"],
        batch_size=BATCH,
    )
    drawn = workers()
    emit("workers_1000", round(drawn["seconds"], 1), "s", "disjoint, complete", steps=drawn["steps"])
    staged = staging()
    others = {name: round(value, 2) for name, value in staged.items() if name != "stage_s"}
    emit("stage_10k_shards", round(staged["stage_s"], 1), "s", "told", **others)


def staging() -> dict[str, float]:
    """`stage_shards` against a store in a process of its own."""
    from tests.infra.local import free_port

    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    store = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        os.environ |= {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
        }
        client = _bucket()
        with tempfile.TemporaryDirectory() as name:
            found = stage_shards(Path(name))
        client.close()
        return found
    finally:
        store.terminate()
        store.wait(30)


def _bucket():
    """A client, when the store answers and has its bucket."""
    import boto3
    from botocore.exceptions import EndpointConnectionError

    for _ in range(300):
        client = boto3.session.Session().client("s3")
        try:
            client.create_bucket(Bucket="bucket")
            return client
        except EndpointConnectionError:
            time.sleep(0.2)
    raise TimeoutError("moto's server does not answer")


if __name__ == "__main__":
    main()
