"""A stage on a cluster that this machine is no part of (`cluster.address: http://head:8265`).

The stage submits itself as a Ray job: its code and params.yaml travel as the job's working folder, its inputs through
storage under their hash, its outputs back the same way. On the cluster `python -m pipelines.support.remote` runs
it. The job's name is a hash of all that decides its outputs: the same command follows the same job, or takes what it
made.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from components.errors import ConfigError
from components.files import sha256_folder, whole_folder, write_json, write_whole
from infra.config import ClusterConfig
from infra.ray_cluster import ray_jobs
from infra.ray_cluster.ray_session import CODE, copy_code
from infra.storage.buckets import check_storage, is_remote
from infra.storage.staging import Staged, fetch, node_cache, release, stage
from infra.storage.store import Store
from pipelines.support import cli
from pipelines.support.params import DEFAULT, VARIABLE, WHERE, Params
from pipelines.support.paths import ROOT

ORDER = "order.json"
RESULTS = "jobs"  # below storage: a file a finished job


def is_away(cluster: ClusterConfig) -> bool:
    """Whether stages submit themselves."""
    return cluster.address.startswith(("http://", "https://"))


def run(params: Params, module: str, arguments: Sequence[str], inputs: Sequence[Path], outputs: Sequence[Path]) -> None:
    """Runs `python -m module arguments` on the cluster, and brings its outputs here, whole or not at all. Paths are
    relative to the project. Raises ConfigError if storage is none that the cluster reaches."""
    storage = _storage_of(params.cluster)
    _refuse_outside(inputs)
    check_storage(storage)
    staged = {str(path): stage(path, storage, params.cluster.cache_bytes) for path in inputs}
    order = {
        "module": module,
        "arguments": list(arguments),
        "inputs": {path: asdict(item) for path, item in staged.items()},
        "files": [str(path) for path in inputs if path.is_file()],
        "outputs": [str(path) for path in outputs],
        "storage": storage,
    }
    name = job_name(params, order)
    result = Store.open(storage) / RESULTS
    if f"{name}.json" not in result.names():
        client = ray_jobs.connect(params.cluster.address)
        with tempfile.TemporaryDirectory() as folder:
            pack(Path(folder), {**order, "name": name})
            changes = {"address": "auto", "storage_path": storage}
            told = {"CLUSTER": params.cluster.model_dump(mode="json") | changes}
            told |= {"TRACKING": params.tracking.model_dump(mode="json")}  # this environment may have changed either
            environment = {f"{VARIABLE}{name}": json.dumps(block) for name, block in told.items()}
            command = f"python -m pipelines.support.remote {shlex.quote(ORDER)}"
            ray_jobs.run(client, name, command, Path(folder), environment)
    take(Staged(**json.loads(result.read(f"{name}.json"))), outputs)
    print(f"{name}: its outputs are here: {', '.join(map(str, outputs))}")


def _storage_of(cluster: ClusterConfig) -> str:
    if not is_remote(cluster.storage_path):
        raise ConfigError(
            f"cluster.storage_path: with cluster.address {cluster.address} expected s3://bucket/prefix, through "
            f"which inputs go there and results come back; found {cluster.storage_path!r}"
        )
    return cluster.storage_path.rstrip("/")


def _refuse_outside(inputs: Sequence[Path]) -> None:
    """params.yaml travels as it is, so what it names must be found by the same path there."""
    for path in inputs:
        if path.is_absolute() or ".." in path.parts:
            raise ConfigError(f"{path}: a stage that submits itself reads it, expected a path below the project")


def refuse_local_tracker(params: Params) -> None:
    """Raises ConfigError if a job on the cluster could not reach the tracker."""
    if not params.tracking.uri.startswith(("http://", "https://")):
        raise ConfigError(
            f"tracking.uri: with cluster.address {params.cluster.address} expected an MLflow server's address that the "
            f"cluster reaches; found {params.tracking.uri!r}"
        )


def job_name(params: Params, order: dict) -> str:
    """What decides the outputs: the command, its inputs' content, the parameters and the code."""
    facts = {
        "command": [order["module"], *order["arguments"]],
        "inputs": {path: item["hash"] for path, item in order["inputs"].items()},
        "params": params.model_dump(mode="json", exclude=set(WHERE)),
        "code": [sha256_folder(ROOT / folder, "**/*.py") for folder in CODE],
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    stem = "-".join([order["module"].rsplit(".", 1)[-1], *order["arguments"]])
    return f"{stem}-{digest[:16]}"


def pack(folder: Path, order: dict) -> None:
    """The job's working folder: code, parameters and the order, a few hundred kilobytes."""
    copy_code(ROOT, folder)
    shutil.copy(DEFAULT, folder / DEFAULT)
    write_json(folder / ORDER, order)


def take(made: Staged, outputs: Sequence[Path]) -> None:
    """Puts a job's outputs in their places."""
    entry = fetch(made, node_cache())
    for path in outputs:
        if (entry / path).is_file():
            write_whole(path, (entry / path).read_bytes())
        else:
            with whole_folder(path) as folder:
                shutil.copytree(entry / path, folder, dirs_exist_ok=True)
    release(entry)


def main(argv: list[str]) -> None:
    """The cluster's side: makes a project folder of the inputs, runs the stage there, stages what it made."""
    order = json.loads(Path(cli.one_argument(argv, "python -m pipelines.support.remote ORDER")).read_text())
    here = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="stage-") as name:
        folder = Path(name)
        shutil.copy(here / DEFAULT, folder)
        for path, item in order["inputs"].items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            entry = Staged(**item).local()
            (folder / path).symlink_to(entry / Path(path).name if path in order["files"] else entry)
        command = [sys.executable, "-m", order["module"], *order["arguments"]]
        environment = os.environ | {"PYTHONPATH": str(here)}
        done = subprocess.run(command, cwd=folder, env=environment, check=False)
        if done.returncode:
            sys.exit(done.returncode)
        outputs = folder / ".outputs"
        for path in order["outputs"]:
            (outputs / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).rename(outputs / path)
        made = stage(outputs, order["storage"])
    (Store.open(order["storage"]) / RESULTS).write(f"{order['name']}.json", json.dumps(asdict(made)).encode())


if __name__ == "__main__":
    cli.run(main)
