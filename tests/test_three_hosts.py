"""`dvc repro` across three hosts, one of which loses its link in the middle of a training and gets it back."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient
from moto.server import ThreadedMotoServer

from infra.ray_cluster.ray_session import ENVIRONMENT, UNSAID
from tests import three_hosts
from tests.chaos import weights
from tests.clones import command, environment, make_clone, tiny_params
from tests.infra.local import free_port
from tests.infra.mlflow_server import PASSWORD, missing, mlflow_server, postgres

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]
AWAY = 20.0  # seconds without a link, in which the head gives the node up
STEPS = 600


@pytest.fixture
def hosts(monkeypatch):
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    if reason := three_hosts.refusal() or missing():
        pytest.skip(reason)
    with three_hosts.network():
        yield


@pytest.fixture
def services(hosts, s3, tmp_path, monkeypatch):
    """A store and a tracker that all hosts reach, and the environment of every process."""
    store = ThreadedMotoServer(ip_address=three_hosts.GATEWAY, port=free_port(), verbose=False)
    store.start()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{three_hosts.GATEWAY}:{store.get_host_and_port()[1]}",
        "MLFLOW_TRACKING_USERNAME": "admin",
        "MLFLOW_TRACKING_PASSWORD": PASSWORD,
        **ENVIRONMENT,
        **UNSAID,
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with (
        postgres() as database,
        mlflow_server(database, "s3://bucket/mlflow", tmp_path / "mlflow.log", three_hosts.GATEWAY) as tracking,
    ):
        yield tracking
    store.stop()


def checkpoints(s3, storage: str) -> int:
    found = s3.list_objects_v2(Bucket="bucket", Prefix=f"{storage}/judge-").get("Contents", ())
    return len([item for item in found if item["Key"].endswith("state.sha256")])


def project(folder: Path, tracking: str, storage: str) -> Path:
    params = tiny_params()
    params["judges"]["judge"]["training"] |= {"steps": STEPS, "save_every": 50, "report_every": 50}
    params["tracking"] = {"uri": tracking, "experiment": storage}
    params["cluster"] = {
        "address": f"{three_hosts.address('head')}:6379",
        "num_workers": 2,
        "threads_per_worker": 1,
        "max_failures": 10,
        "storage_path": f"s3://bucket/{storage}",
    }
    return make_clone(folder, params)


def start(clone: Path, *verb: str) -> subprocess.Popen:
    """A command of a project, on the head's host; what it says goes to the project's log."""
    changed = {"GLOO_SOCKET_IFNAME": "lf-head-i", "LATENT_FOUNDRY_CACHE": f"{clone}-cache"}
    command, settings = three_hosts.on("head", list(verb)), environment(clone) | changed
    with log_of(clone).open("a") as log:
        return subprocess.Popen(command, cwd=clone, env=settings, stdout=log, stderr=subprocess.STDOUT)


def log_of(clone: Path) -> Path:
    return clone.with_suffix(".log")


def finish(process: subprocess.Popen, clone: Path) -> None:
    assert process.wait(2400) == 0, log_of(clone).read_text()[-6000:]


def test_a_whole_repro_with_a_link_cut_and_healed_changes_no_weight(services, s3, tmp_path):
    """Every stage on the hosts; code travels with it, inputs, checkpoints and shards through the bucket."""
    quiet, cut = project(tmp_path / "quiet", services, "quiet"), project(tmp_path / "cut", services, "cut")
    with contextlib.ExitStack() as up:
        folder = Path(up.enter_context(tempfile.TemporaryDirectory(prefix="lf")))
        for count, host in enumerate(("head", "one"), 1):
            up.enter_context(three_hosts.node(host, folder, tmp_path))
            three_hosts.wait_for_nodes(count, folder)
        with three_hosts.node("two", folder, tmp_path):
            three_hosts.wait_for_nodes(3, folder)
            driver = start(cut, "dvc", "repro")
            while not checkpoints(s3, "cut"):
                assert driver.poll() is None, log_of(cut).read_text()[-6000:]
                time.sleep(0.1)
            three_hosts.cut("two")
            time.sleep(AWAY)
            assert driver.poll() is None, "the training waits for a second host"
            three_hosts.wait_for_nodes(2, folder)
            three_hosts.heal("two")
        with three_hosts.node("two", folder, tmp_path):  # as a supervisor starts it again
            finish(driver, cut)
            for module, *arguments in (["prepare"], ["train", "judges.judge"]):
                finish(start(quiet, sys.executable, "-m", f"pipelines.{module}", *arguments), quiet)
    assert weights(quiet, "judge") == weights(cut, "judge")
    assert_whole(cut, services)


def assert_whole(clone: Path, tracking: str) -> None:
    """Every stage is recorded, the champion registered on the server, and there is nothing left to do."""
    again = command(clone, "dvc", "repro")
    assert "Data and pipelines are up to date" in again.stdout, again.stdout + again.stderr
    stages = set(yaml.safe_load((clone / "dvc.lock").read_text())["stages"])
    assert {"prepare", "judge@judge", "encode@latents", "evaluate@ldm", "promote", "report"} <= stages
    promoted = json.loads((clone / "promoted.json").read_text())
    client = MlflowClient(tracking)
    assert client.get_model_version_by_alias("tiny", "champion").version == promoted["version"]
    runs = client.search_runs([client.get_experiment_by_name(clone.name).experiment_id])
    assert {"vae", "judge", "ldm", "dcgan", "wgan_gp"} == {run.info.run_name for run in runs}
