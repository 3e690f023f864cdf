"""Trains one block of params.yaml: `python -m pipelines.train samplers.ldm` -> runs/ldm."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from components.artifacts import run_folder
from components.config import Strict, parse
from components.data.dataset import MANIFEST, read_manifest, verify
from components.families import family_class
from components.families.base import AutoencoderInfo, data_info
from components.files import sha256, sha256_folder
from infra import ray_train
from infra.ray_cluster.ray_session import session
from infra.storage.buckets import check_storage
from infra.tracking import runs
from pipelines.support import cli, paths, remote
from pipelines.support.params import Params, TrainBlock, load, name_of, train_block
from pipelines.support.paths import ROOT


def make_job(params: Params, key: str) -> ray_train.Job:
    """The job of a block, checked: its data set is whole, its family can be built. Raises InputError otherwise."""
    block = train_block(params, key)
    folder = Path(block.data)
    manifest = verify(folder)
    info = data_info(manifest, read_autoencoder_info(folder), read_text_info(folder))
    kind = family_class(block.family)
    config = parse(kind.Config, block.whole_model(), f"{key}.model")
    kind(config, info)  # refuses here, on the driver, what no worker could train
    borrowed = tuple((name, str(Path(path).resolve())) for name, path in kind.borrows(config).items())
    return ray_train.Job(
        name=name_of(key),
        family=block.family,
        config=config,
        info=info,
        training=block.training,
        seed=params.seed,
        data=str(folder.resolve()),
        data_hash="-".join([data_hash(folder), *(content_hash(Path(path)) for path in _others(block, config))]),
        code_hash=code_hash(),
        watch=_watch(block),
        borrowed=borrowed,
        start="" if block.start is None else str(Path(block.start).resolve()),
    )


def _others(block: TrainBlock, config: Strict) -> list[str]:
    """What a training reads beside its data: what its family looks through, and the run that it starts from."""
    return [*family_class(block.family).borrows(config).values(), *filter(None, [block.start])]


def _watch(block: TrainBlock) -> ray_train.Watch | None:
    """What to compare checkpoints with, checked to be there."""
    watch = block.watch
    if watch is None:
        return None
    run_folder.read_config(Path(watch.judge))
    read_manifest(Path(watch.held_out))
    return ray_train.Watch(str(Path(watch.judge).resolve()), str(Path(watch.held_out).resolve()))


def read_autoencoder_info(folder: Path) -> AutoencoderInfo | None:
    """How to build the autoencoder that a latent data set carries; None for a data set of images."""
    path = folder / paths.AUTOENCODER_INFO
    return AutoencoderInfo(**json.loads(path.read_text())) if path.is_file() else None


def read_text_info(folder: Path) -> dict | None:
    """The layout of the text encoder that the captions of a latent data set went through, if one did."""
    path = folder / paths.TEXT_INFO
    return json.loads(path.read_text()) if path.is_file() else None


def data_hash(folder: Path) -> str:
    """The content of a data set: its manifest, which lists every shard's hash, and what lies beside it."""
    others = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors"))
    return sha256_folder(folder, MANIFEST) if len(others) == 1 else "-".join(sha256(path)[:32] for path in others)


def content_hash(path: Path) -> str:
    """Of a file, or of a run folder's config and weights. Raises SamplerError if there is neither."""
    if path.is_file():
        return sha256(path)[:32]
    run_folder.read_config(path)
    return sha256_folder(path, "*.safetensors")[:32]


def code_hash() -> str:
    """The code that training runs through."""
    return sha256_folder(ROOT / "components", "**/*.py")


def main(argv: list[str]) -> None:
    key = cli.one_argument(argv, "python -m pipelines.train GROUP.NAME")
    params = load()
    job = make_job(params, key)
    if remote.is_away(params.cluster):
        remote.refuse_local_tracker(params)
        block = train_block(params, key)
        watched = (block.watch.judge, block.watch.held_out) if block.watch else ()
        inputs = [block.data, *watched, *_others(block, job.config)]
        remote.run(params, "pipelines.train", [key], list(map(Path, inputs)), [paths.RUNS / job.name])
        return
    check_storage(params.cluster.storage(ROOT))
    described = {
        "family": job.family,
        "seed": job.seed,
        **{f"model.{name}": value for name, value in job.config.model_dump(mode="json").items()},
        **{f"training.{name}": value for name, value in job.training.model_dump(mode="json").items()},
    }
    dataset = {"name": job.data.removeprefix(f"{ROOT}/"), "digest": job.data_hash, "source": job.data}
    succeeded = False
    with ThreadPoolExecutor(1) as beside:  # MLflow's import and Ray's start take seconds each, side by side fewer
        tracked = beside.submit(runs.open_run, params.tracking, ROOT, job.name, job.hash, described, dataset)
        try:
            with session(params.cluster, ROOT):
                logger = runs.RunLogger(tracked.result())
                state = ray_train.train(job, params.cluster, params.cluster.storage(ROOT), logger)
            succeeded = True
        finally:
            runs.close_run(tracked.result(), succeeded)
    provenance = run_folder.Provenance(
        data=job.data_hash, code=job.code_hash, job=job.hash, seed=job.seed, step=state.step
    )
    target = paths.RUNS / job.name
    run_folder.write(target, job.family, job.build(), state, provenance)
    print(f"{job.name}: trained for {state.step} steps, written to {target}")


if __name__ == "__main__":
    cli.run(main)
