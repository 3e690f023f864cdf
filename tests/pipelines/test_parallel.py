"""Stages side by side: in order, as many as fit, the first failure told."""

import sys
import threading
import time

import pytest
import yaml

from components.errors import InputError
from infra.config import ClusterConfig
from pipelines import parallel
from tests.clones import command, make_clone, tiny_params

GRAPH = {
    "prepare": set(),
    "autoencoder@vae": {"prepare"},
    "sampler@dcgan": {"prepare"},
    "encode@latents": {"autoencoder@vae"},
    "evaluate@dcgan": {"sampler@dcgan"},
    "promote": {"encode@latents", "evaluate@dcgan"},
}


class Stages:
    """Stands for `dvc repro`: notes what runs beside what, and fails where it is told to."""

    def __init__(self, *fails: str):
        self.fails, self.running, self.beside, self.order, self.most = fails, set(), {}, [], 0
        self.lock = threading.Lock()

    def __call__(self, stage: str) -> int:
        with self.lock:
            self.order.append(stage)
            self.running.add(stage)
            self.most = max(self.most, len(self.running))
            for other in self.running:
                self.beside.setdefault(other, set()).update(self.running - {other})
        time.sleep(0.05)
        with self.lock:
            self.running.remove(stage)
        return int(stage in self.fails)


def test_independent_stages_run_at_the_same_time_and_none_before_what_it_needs():
    stages = Stages()
    assert parallel.run(GRAPH, stages, 2) is None
    assert sorted(stages.order) == sorted(GRAPH)
    place = {stage: number for number, stage in enumerate(stages.order)}
    assert all(place[need] < place[stage] for stage, needs in GRAPH.items() for need in needs)
    assert stages.beside["autoencoder@vae"] == {"sampler@dcgan"}
    assert stages.beside["prepare"] == set()


def test_what_measures_times_runs_alone():
    stages = Stages()
    parallel.run(GRAPH, stages, 4)
    assert stages.beside["evaluate@dcgan"] == set()


def test_the_first_failure_is_told_and_nothing_is_started_after_it():
    stages = Stages("sampler@dcgan")
    assert parallel.run(GRAPH, stages, 2) == "sampler@dcgan"
    assert "evaluate@dcgan" not in stages.order and "promote" not in stages.order
    assert "autoencoder@vae" in stages.order, "what ran already was finished"


def test_no_more_than_asked_for():
    stages = Stages()
    parallel.run({str(number): set() for number in range(9)}, stages, 3)
    assert stages.most == 3


def test_the_graph_is_dvcs():
    graph = parallel.read_graph(parallel.ROOT, ["sampler@ldm"])
    assert graph["encode@latents"] >= {"prepare", "encode_block@latents", "input@latents/autoencoder"}
    assert graph["input@latents/autoencoder"] == {"autoencoder@vae"}
    trained = {"prepare", "autoencoder@vae", "encode@latents", "sampler@ldm"}
    blocks = {"autoencoder_block@vae", "encode_block@latents", "sampler_block@ldm"}
    assert set(graph) == {"code", *trained, *blocks, "input@latents/autoencoder"}
    with pytest.raises(InputError, match="no stage sampler@nothing; expected one of"):
        parallel.read_graph(parallel.ROOT, ["sampler@nothing"])


@pytest.mark.parametrize(
    ("workers", "most", "shared"), [(1, 2, 1), (8, 2, 4), ((2, 9), 3, (2, 3)), ((4, 8), 4, (2, 2)), (4, 8, 1)]
)
def test_each_stage_has_its_share(workers, most, shared):
    cluster = ClusterConfig(address="auto", num_workers=workers, storage_path="s3://bucket/ray")
    found = parallel.share(cluster, most)
    assert found.num_workers == shared
    assert found.storage_path == cluster.storage_path


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_dvc_lock_is_complete_after_concurrent_stages(tmp_path):
    clone = make_clone(tmp_path / "clone", tiny_params())
    targets = ("autoencoder@vae", "judge@judge", "sampler@dcgan")
    done = command(clone, sys.executable, "-m", "pipelines.parallel", "--stages", "2", *targets)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    others = {"code", "prepare", "autoencoder_block@vae", "judge_block@judge", "sampler_block@dcgan"}
    others |= {"input@dcgan/judge"}
    assert set(yaml.safe_load((clone / "dvc.lock").read_text())["stages"]) == {*others, *targets}
    again = command(clone, "dvc", "repro", *targets)
    assert "Data and pipelines are up to date" in again.stdout, again.stdout
