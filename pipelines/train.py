"""Trains one block of params.yaml: `python -m pipelines.train samplers.ldm` -> runs/ldm."""

from __future__ import annotations

import contextlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from components.artifacts import old_runs, run_folder
from components.config import parse
from components.data.dataset import MANIFEST, read_manifest, verify
from components.data.info import AutoencoderInfo, DataInfo, RunInfo, data_info
from components.data.media import medium
from components.errors import ConfigError
from components.families import family_class
from components.families.base import JUDGE, START
from components.files import sha256, sha256_folder, whole_folder, write_whole
from components.shapes import shape_text
from components.training.loop import State
from infra import ray_train
from infra.ray_cluster.ray_session import session
from infra.storage.buckets import check_storage
from infra.tracking import runs
from pipelines.support import cli, code_closure, inputs, lineage, paths, remote
from pipelines.support.fitness import cut_captions, refuse_unmeasurable
from pipelines.support.params import Params, load, name_of, train_block
from pipelines.support.paths import ROOT
from pipelines.support.readiness import refuse_unready


def make_job(params: Params, key: str) -> ray_train.Job:
    """The job of a block, checked: its data set is whole, its inputs are there and fit, its family can be built. Raises
    InputError otherwise."""
    block, name = train_block(params, key), name_of(key)
    folder = Path(block.data)
    manifest = verify(folder)
    given = inputs.resolve(params, name)
    hashes = {role: inputs.content_hash(one.path) for role, one in given.items()}
    inputs.refuse_changed(given, hashes, manifest.source, folder, name)
    told = {
        role: RunInfo(family=one.run.family, config=one.run.config, data=one.run.data)
        for role, one in given.items()
        if one.run is not None
    }
    info = data_info(manifest, read_autoencoder_info(folder), read_text_info(folder))
    info = info.model_copy(update={"inputs": {role: run for role, run in told.items() if given[role].role.kept}})
    if block.training.steps == 0:
        info = _info_of_held(told[START].data, info, f"inputs: {name}/{START}: {given[START].path}", folder)
    kind = family_class(block.family)
    config = parse(kind.Config, inputs.whole_model(params, name, trained=True), f"{key}.model")
    kind(config, info)  # refuses here, on the driver, what no worker could train
    for role, run in told.items():
        kind.refuse_unfit_input(config, info, role, run)
    is_validated = JUDGE in given or kind.held_out is not None or bool(kind.checkpoint_figures)
    is_validated = is_validated and block.training.steps > 0
    if is_validated:
        read_manifest(paths.TEST_IMAGES)
    return ray_train.Job(
        name=name,
        family=block.family,
        config=config,
        info=info,
        training=block.training,
        seed=params.seed,
        data=str(folder.absolute()),  # by its name here, also where it is a link into a cache
        data_hash=data_hash(folder),
        code_hash=code_closure.code_hash(code_closure.of_training(block.family)),
        inputs=tuple(ray_train.Input(role, str(one.path.absolute()), hashes[role]) for role, one in given.items()),
        held_out_hash=data_hash(paths.TEST_IMAGES) if block.training.keep == "best" else "",
        held_out=str(paths.TEST_IMAGES.resolve()) if is_validated else "",
    )


def read_autoencoder_info(folder: Path) -> AutoencoderInfo | None:
    """How to build the autoencoder that a latent data set carries; None for a data set of images."""
    path = folder / paths.AUTOENCODER_INFO
    return old_runs.upgraded_info(AutoencoderInfo(**json.loads(path.read_text()))) if path.is_file() else None


def read_text_info(folder: Path) -> dict | None:
    """The layout of the text encoder that the captions of a latent data set went through, if one did."""
    path = folder / paths.TEXT_INFO
    return json.loads(path.read_text()) if path.is_file() else None


def _info_of_held(run: DataInfo, data: DataInfo, where: str, folder: Path) -> DataInfo:
    """What a run that is held as it is knows of its data. Raises ConfigError if what it makes cannot be measured on the
    block's."""
    made, there = ((one.decoded.medium, one.decoded.shape) for one in (run, data))
    if made != there:
        told = [f"{medium(name).plural} of {shape_text(shape)}" for name, shape in (made, there)]
        raise ConfigError(f"{where}: makes {told[0]}; expected {told[1]}, as in {folder}, which it is measured on")
    return run


def data_hash(folder: Path) -> str:
    """The content of a data set: its manifest, which lists every shard's hash, and what lies beside it."""
    others = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors"))
    return sha256_folder(folder, MANIFEST) if len(others) == 1 else "-".join(sha256(path)[:32] for path in others)


def write_curves(target: Path, history: list[dict[str, float]]) -> None:
    """A CSV for each phase of a training: its loss and other figures by step."""
    phases: dict[str, list[dict[str, float]]] = {}
    for row in history:
        for phase in dict.fromkeys(name.rpartition("/")[0] for name in row if name.endswith("/loss")):
            told = {
                name.removeprefix(f"{phase}/"): value for name, value in row.items() if name.startswith(f"{phase}/")
            }
            phases.setdefault(phase, []).append({"step": row["step"], **told})
    with whole_folder(target) as folder:
        for phase, rows in phases.items():
            write_whole(folder / f"{phase}.csv", run_folder.as_csv(rows))


def train_tracked(params: Params, key: str, job: ray_train.Job) -> State:
    """Runs a job to its end, in an MLflow run of its own."""
    told = runs.Described(
        name=f"{job.name}-{job.hash[:8]}",
        job=job.hash,
        source=f"python -m pipelines.train {key}",
        commit=lineage.git_commit(),
        description=f"{key}, a {job.family} on {relative(job.data)}, {job.training.steps} steps, seed {job.seed}",
        params={
            "family": job.family,
            "seed": job.seed,
            **{f"model.{name}": value for name, value in job.config.model_dump(mode="json").items()},
            **{f"training.{name}": value for name, value in job.training.model_dump(mode="json").items()},
            **{f"inputs.{role}": run for role, run in learned_from(job).items()},
        },
    )
    manifest = read_manifest(Path(job.data))
    columns = {name: (column.dtype, tuple(column.shape)) for name, column in manifest.columns.items()}
    data = runs.TrainingData(relative(job.data), job.data_hash, manifest.count, columns)
    print(f"{job.name}: {job.training.steps} steps on {data.folder}", flush=True)  # Ray takes a while to start
    status, files = "FAILED", {}
    with ThreadPoolExecutor(1) as beside:  # MLflow's import and Ray's start take seconds each, side by side fewer
        tracked = beside.submit(runs.open_run, params.tracking, ROOT, told, data)
        try:
            with session(params.cluster, ROOT) if job.training.steps else contextlib.nullcontext():
                logger = runs.RunLogger(tracked.result())
                state = ray_train.train(job, params.cluster, params.cluster.storage(ROOT), logger)
            status, files = "FINISHED", {f"run/{run_folder.HISTORY}": run_folder.as_csv(state.history).encode()}
            return state
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            runs.close_run(tracked.result(), status, files)


def provenance_of(job: ray_train.Job, state: State) -> run_folder.Provenance:
    """What a run folder says of where its model came from."""
    return run_folder.Provenance(
        data=job.data_hash,
        code=job.code_hash,
        job=job.hash,
        seed=job.seed,
        step=state.step,
        precision=state.precision,
        inputs=learned_from(job),
    )


def learned_from(job: ray_train.Job) -> dict[str, str]:
    """The trained runs that a job reads, by role: where each lies in the project, and its hash."""
    return {given.role: f"{relative(given.path)} {given.hash}" for given in job.inputs}


def relative(folder: str) -> str:
    """A folder of the project by its path in it."""
    return folder.removeprefix(f"{Path.cwd()}/").removeprefix(f"{ROOT}/")


def main(argv: list[str]) -> None:
    key = cli.one_argument(argv, "python -m pipelines.train GROUP.NAME")
    params = load()
    refuse_unmeasurable(params)
    if cli.is_stage():  # the others follow
        refuse_unready(params)
    job = make_job(params, key)
    if remote.is_away(params.cluster):
        remote.refuse_local_tracker(params)
        read = [Path(train_block(params, key).data), *params.inputs_of(job.name).values()]
        read += [paths.TEST_IMAGES] if job.held_out else []
        remote.run(params, "pipelines.train", [key], read, [paths.RUNS / job.name, paths.CURVES / job.name])
        return
    check_storage(params.cluster.storage(ROOT))
    for note in cut_captions(job.family, job.config, job.info, Path(job.data)):
        print(f"{job.name}: {note}", flush=True)
    state = train_tracked(params, key, job)
    best = ray_train.best_checkpoint(job, params.cluster.storage(ROOT))
    target = paths.RUNS / job.name
    run_folder.write(target, job.family, job.build(), state, provenance_of(job, state), best)
    write_curves(paths.CURVES / job.name, state.history)
    done = f"trained for {state.step} steps" if state.step else f"{learned_from(job)[START].split()[0]} as it is"
    print(f"{job.name}: {done}, written to {target}")
    if best is not None:
        print(
            f"{job.name}: the best {best.figure} was {best.value:.4g} at step {best.step}; those averages are kept too"
        )


if __name__ == "__main__":
    cli.run(main)
