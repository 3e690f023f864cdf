"""A stage that submits itself to a cluster: what it refuses, what its job is named by, and one on a head."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from components.artifacts import run_folder
from components.data.dataset import read_manifest, verify
from components.data.info import data_info
from components.errors import ConfigError, InputError
from components.families.vae import Model as VAE
from components.files import sha256_folder
from components.training.ema import copy_of
from components.training.loop import State
from infra.config import ClusterConfig
from infra.ray_cluster import encoding, ray_jobs
from infra.storage.store import Store
from pipelines import evaluate
from pipelines.support import remote
from pipelines.support.params import Params, load
from tests.clones import ROOT, command, environment, make_clone, tiny_params
from tests.infra.ray_head import ray_head
from tests.pipelines.measured import PARAMS

AWAY = {"address": "http://127.0.0.1:9", "storage_path": "s3://bucket/ray"}


def params(**cluster) -> Params:
    return Params(**{**load(ROOT / "tests/tiny.params.yaml").model_dump(), "cluster": AWAY | cluster})


@pytest.mark.parametrize(
    ("address", "away"), [("local", False), ("auto", False), ("10.0.0.1:6379", False), (AWAY["address"], True)]
)
def test_only_an_address_of_the_job_server_sends_stages_away(address, away):
    assert remote.is_away(ClusterConfig(address=address)) == away


def test_storage_and_tracker_must_be_reachable_from_there():
    with pytest.raises(ConfigError, match=r"cluster\.storage_path: .* expected s3://bucket/prefix"):
        remote.run(params(storage_path=".cache/ray"), "pipelines.encode", [], [], [])
    with pytest.raises(ConfigError, match=r"tracking\.uri: .* expected an MLflow server"):
        remote.refuse_local_tracker(params())


class Results:
    """A bucket without results."""

    def __truediv__(self, name):
        return self

    def names(self):
        return []

    def read(self, name):
        return "{}"


def test_a_job_is_told_where_things_run_as_the_environment_here_has_it(monkeypatch):
    sent = []
    monkeypatch.setattr(remote, "Store", SimpleNamespace(open=lambda storage: Results()))
    monkeypatch.setattr(remote, "Staged", lambda **facts: facts)
    monkeypatch.setattr(remote, "check_storage", lambda storage: None)
    monkeypatch.setattr(remote, "take", lambda made, outputs: None)
    monkeypatch.setattr(ray_jobs, "connect", lambda address: None)
    monkeypatch.setattr(ray_jobs, "run", lambda client, name, command, folder, environment: sent.append(environment))
    monkeypatch.chdir(ROOT)
    asked = params(num_workers=3)
    asked = asked.model_copy(update={"tracking": asked.tracking.model_copy(update={"uri": "http://mlflow:5000"})})
    remote.run(asked, "pipelines.train", ["samplers.ldm"], [], [])
    told = {name: json.loads(block) for name, block in sent[0].items()}
    assert told["LATENT_FOUNDRY_CLUSTER"]["num_workers"] == 3
    assert told["LATENT_FOUNDRY_CLUSTER"]["address"] == "auto"
    assert told["LATENT_FOUNDRY_TRACKING"]["uri"] == "http://mlflow:5000"


def test_what_a_stage_reads_must_lie_below_the_project():
    with pytest.raises(ConfigError, match=r"/weights/inception\.pth: .* expected a path below the project"):
        remote.run(params(), "pipelines.evaluate", [], [Path("/weights/inception.pth")], [])


def test_an_evaluation_sends_all_that_it_reads(described_project, tmp_path, monkeypatch):
    monkeypatch.chdir(described_project)
    (tmp_path / "net.pth").write_bytes(b"")
    content = {**PARAMS, "cluster": AWAY}
    content["evaluate"] = PARAMS["evaluate"] | {
        "lpips": str(tmp_path / "net.pth"),
        "clip_score": "openai/a-name-on-a-hub",
    }
    monkeypatch.setattr(evaluate, "load", lambda: Params(**content))
    sent = []
    monkeypatch.setattr(remote, "run", lambda params, *order: sent.append(order))
    evaluate.main(["samplers.dcgan"])
    ((module, arguments, inputs, outputs),) = sent
    assert (module, arguments) == ("pipelines.evaluate", ["samplers.dcgan"])
    folders = ["runs/dcgan", "runs/judge", "reference", "data/images/train", "data/images/test"]
    assert [str(path) for path in inputs] == [*folders, str(tmp_path / "net.pth")]
    assert [str(path) for path in outputs] == ["samples/dcgan", "metrics/dcgan.json", "summary/dcgan.json"]


def test_a_head_that_does_not_answer_is_told():
    with pytest.raises(InputError, match=r"cluster\.address: no Ray cluster answers at 'http://127\.0\.0\.1:9'"):
        ray_jobs.connect(AWAY["address"])


def test_a_jobs_name_follows_what_decides_its_outputs():
    order = {"module": "pipelines.encode", "arguments": [], "inputs": {"runs/vae": {"hash": "1"}}}
    name = remote.job_name(params(), order)
    assert name.startswith("encode-") and name == remote.job_name(params(num_workers=8), order), "where is not what"
    assert name != remote.job_name(params(), {**order, "inputs": {"runs/vae": {"hash": "2"}}})
    other = Params(**{**params().model_dump(), "seed": 1})
    assert name != remote.job_name(other, order)


def test_what_travels_is_small_and_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    remote.pack(tmp_path, {"name": "x"})
    size = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert size < 2 * 2**20
    assert (tmp_path / "pipelines/support/remote.py").is_file() and (tmp_path / "params.yaml").is_file()
    assert json.loads((tmp_path / "order.json").read_text()) == {"name": "x"}


class Client:
    """A head that knows one job."""

    def __init__(self, status: str | None, log: tuple[str, ...] = ("",)):
        self.status, self.log, self.calls = status, list(log), []

    def list_jobs(self):
        return [_job(self.status)] if self.status else []

    def get_job_status(self, name):
        self.status = "SUCCEEDED" if len(self.log) <= 1 else "RUNNING"
        return _job(self.status).status

    def get_job_logs(self, name):
        return self.log.pop(0) if len(self.log) > 1 else self.log[0]

    def __getattr__(self, verb):
        return lambda *arguments, **settings: self.calls.append(verb)


def _job(status: str):
    named = type("Status", (), {"value": status})()
    return type("Job", (), {"submission_id": "job", "status": named})()


@pytest.mark.parametrize(
    ("status", "calls"),
    [
        (None, ["submit_job"]),
        ("RUNNING", []),
        ("FAILED", ["delete_job", "submit_job"]),
        ("STOPPED", ["delete_job", "submit_job"]),
    ],
)
def test_a_running_job_is_followed_and_a_failed_one_tried_again(monkeypatch, capsys, tmp_path, status, calls):
    monkeypatch.setattr(ray_jobs.time, "sleep", lambda seconds: None)
    client = Client(status, ("one\n", "one\ntwo\n", "one\ntwo\nthree\n"))
    ray_jobs.run(client, "job", "true", tmp_path, {})
    assert [call for call in client.calls if call.endswith("_job")] == calls
    assert capsys.readouterr().out.endswith("one\ntwo\nthree\n"), "each line once"


@pytest.mark.parametrize(("answer", "stops"), [("y", True), ("n", False)])
def test_an_interruption_asks_once(monkeypatch, tmp_path, answer, stops):
    asked = []
    monkeypatch.setattr("builtins.input", lambda question: (asked.append(question), answer)[1])
    monkeypatch.setattr(ray_jobs.sys, "stdin", type("Terminal", (), {"isatty": lambda self: True})())
    monkeypatch.setattr(ray_jobs, "follow", lambda client, name: (_ for _ in ()).throw(KeyboardInterrupt))
    client = Client("RUNNING")
    with pytest.raises(KeyboardInterrupt):
        ray_jobs.run(client, "job", "true", tmp_path, {})
    assert len(asked) == 1 and ("stop_job" in client.calls) == stops


def untrained_vae(folder: Path) -> None:
    images = folder / "data/images/train"
    torch.manual_seed(0)
    family = VAE(VAE.Config(latent_channels=2, widths=(8, 8)), data_info(read_manifest(images)))
    average = copy_of(dict(family.nets))
    provenance = run_folder.Provenance(data="d", code="c", job="j", seed=0, step=1)
    run_folder.write(folder / "runs/vae", "vae", family, State(1, average, {}, average), provenance)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_stage_on_a_head_interrupted_and_taken_up_again(s3, endpoint, tmp_path, monkeypatch):
    aws = {"AWS_ENDPOINT_URL": endpoint, "LATENT_FOUNDRY_CACHE": str(tmp_path / "node")}
    with ray_head(aws) as address:
        content = tiny_params()
        content["cluster"] = {"address": address, "storage_path": "s3://bucket/ray"}
        clone = make_clone(tmp_path / "clone", content)
        assert command(clone, sys.executable, "-m", "pipelines.prepare").returncode == 0
        untrained_vae(clone)
        verb = [sys.executable, "-m", "pipelines.encode"]
        first = subprocess.Popen(verb, cwd=clone, env=environment(clone), stdout=subprocess.PIPE, text=True)
        assert "submitted to" in first.stdout.readline()
        first.send_signal(signal.SIGINT)
        assert first.wait(60) == 130
        assert not (clone / "data/latents").exists()
        again = command(clone, *verb)
        assert again.returncode == 0, again.stdout[-3000:] + again.stderr[-3000:]
        assert "submitted to" not in again.stdout, "the first submission's job was followed"
    made = verify(clone / "data/latents")
    assert made.count == 1438

    work = encoding.Work(clone / "runs/vae", clone / "data/images/train", 500)
    encoder = encoding.actor(work, Store.open(_folder(tmp_path / "here")))
    encoder({"shard": list(range(len(made.shards)))})
    for path in (tmp_path / "here").iterdir():
        assert path.read_bytes() == (clone / "data/latents" / path.name).read_bytes(), path.name

    # the cluster is gone: what it made is still there
    before = sha256_folder(clone / "data/latents")
    (clone / "data/latents/manifest.json").unlink()
    taken = command(clone, *verb)
    assert taken.returncode == 0, taken.stderr
    assert sha256_folder(clone / "data/latents") == before


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_evaluation_on_a_head_measures_what_it_measures_here(s3, endpoint, measured_project, tmp_path):
    clone = tmp_path / "project"
    shutil.copytree(measured_project, clone)
    here = json.loads((clone / "metrics/ldm.json").read_text())
    for made in ("metrics", "samples"):
        shutil.rmtree(clone / made)
    aws = {"AWS_ENDPOINT_URL": endpoint, "LATENT_FOUNDRY_CACHE": str(tmp_path / "node")}
    with ray_head(aws) as address:
        cluster = {"address": address, "storage_path": "s3://bucket/ray"}
        (clone / "params.yaml").write_text(yaml.safe_dump({**PARAMS, "cluster": cluster}))
        verb = [sys.executable, "-m", "pipelines.evaluate", "samplers.ldm"]
        settings = environment(ROOT)
        done = subprocess.run(verb, cwd=clone, env=settings, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    there = json.loads((clone / "metrics/ldm.json").read_text())
    assert there["details"][0]["protocol"] == here["details"][0]["protocol"]
    for found, expected in zip(there["details"][0]["candidates"], here["details"][0]["candidates"], strict=True):
        for figure in ("frechet_distance", "kid", "precision", "recall", "label_agreement"):
            assert found["figures"][figure] == pytest.approx(expected["figures"][figure], rel=1e-4, abs=1e-6), figure
    assert {path.name for path in (clone / "samples/ldm").iterdir()} >= {"0-grid.png", "1-nearest.png"}


def _folder(path: Path) -> Path:
    path.mkdir()
    return path
