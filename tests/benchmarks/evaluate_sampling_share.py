"""The share of an evaluation's time that sampling takes: 10,000 images of the digits champion.

python -m tests.benchmarks.evaluate_sampling_share

The champion is that of promoted.json, or an untrained sampler of the same kind and size, whose time does not depend on
its weights; so does the judge. SampleTask is what no evaluation of 10,000 images can do without; the rest is features,
figures, intervals and pictures.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

import torch
import yaml

from components.artifacts import run_folder
from components.data.info import DataInfo
from components.evaluation import generation
from components.families import family_class
from components.families.base import Family
from components.training.ema import copy_of
from components.training.loop import State
from infra.ray_cluster.worker_pool import WorkerPool
from pipelines import prepare, reference
from pipelines.support import measurement, params, paths
from pipelines.support.paths import ROOT
from tests.benchmarks.common import emit
from tests.infra.champion import champion_or_untrained

NUM_SAMPLES = int(os.environ.get("NUM_SAMPLES", "10000"))


def write_run(folder: Path, name: str, family: Family) -> None:
    provenance = run_folder.Provenance(data="", code="", job="", seed=0, step=1)
    average = copy_of({net: family.nets[net] for net in family.kept})
    run_folder.write(folder, name, family, State(1, {}, {}, average), provenance)


def write_project(folder: Path) -> tuple[params.Params, dict]:
    """The demo's digits, a judge, the champion's sampler as runs/ldm. Returns params and the champion's settings."""
    content = yaml.safe_load((ROOT / params.DEFAULT).read_text())
    content["evaluate"]["num_samples"] = NUM_SAMPLES
    content["cluster"] = {}
    (folder / params.DEFAULT).write_text(yaml.safe_dump(content))
    os.chdir(folder)
    loaded = params.load()
    images = prepare.prepare(prepare.open_source(loaded.data, 0, folder), loaded.data, prepare.TARGET)["train"]
    judge = family_class("judge")
    shape = images.columns["image"].shape
    torch.manual_seed(0)
    block = next(iter(loaded.judges.values()))
    write_run(
        paths.RUNS / "judge", "judge", judge(judge.Config(**block.model), DataInfo(shape=shape, classes=images.classes))
    )
    return loaded, content["samplers"]["ldm"]["candidates"][0]


def main() -> None:
    family, which = champion_or_untrained()
    family.data = family.data.model_copy(update={"classes": tuple("0123456789")})
    home = Path.cwd()
    with tempfile.TemporaryDirectory() as temporary:
        loaded, candidate = write_project(Path(temporary))
        classes = measurement.Dataset(paths.TEST_IMAGES).manifest.classes
        family.data = family.data.model_copy(update={"classes": classes})
        write_run(paths.RUNS / "ldm", "latent_diffusion", family)
        reference.reference(loaded)
        sampled: list[float] = []

        def timed(sampler, request, inner=generation.generate):
            made = inner(sampler, request)
            sampled.append(made.seconds)
            return made

        generation.generate = timed
        start = time.perf_counter()
        extractors = measurement.open_extractors(loaded, "cuda" if torch.cuda.is_available() else "cpu")
        measures = measurement.open_measurement(loaded, extractors)
        order = measurement.sampling(loaded, paths.RUNS / "ldm", candidate)
        measurement.measure(
            WorkerPool(0), order, order.open(str(next(family.nets.parameters()).device)), measures, extractors
        )
        whole = time.perf_counter() - start
        os.chdir(home)
    more = {
        "seconds": round(whole, 1),
        "sampling_s": round(sum(sampled), 1),
        "num_samples": NUM_SAMPLES,
        "sampler": which,
    }
    emit("evaluate_sampling_share", round(sum(sampled) / whole, 3), "of the time", ">= 0.9", settings=candidate, **more)


if __name__ == "__main__":
    sys.exit(main())
