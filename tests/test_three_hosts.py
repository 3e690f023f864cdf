"""A training across three hosts, one of which loses its link in the middle and gets it back."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

from infra.ray_session import ENVIRONMENT
from tests import three_hosts
from tests.clones import command, environment, make_clone, tiny_params
from tests.infra.local import free_port
from tests.infra.mlflow_server import PASSWORD, missing, mlflow_server, postgres

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
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
    clone = make_clone(folder, params)
    assert command(clone, sys.executable, "-m", "pipelines.prepare").returncode == 0
    return clone


def start(clone: Path) -> subprocess.Popen:
    verb = [sys.executable, "-m", "pipelines.train", "judges.judge"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    changed = {"GLOO_SOCKET_IFNAME": "lf-head-i", "LATENT_FOUNDRY_CACHE": f"{clone}-cache"}
    return subprocess.Popen(three_hosts.on("head", verb), cwd=clone, env=environment(clone) | changed, **pipes)


def test_a_link_that_is_cut_and_healed_changes_no_weight(services, s3, tmp_path):
    quiet, cut = project(tmp_path / "quiet", services, "quiet"), project(tmp_path / "cut", services, "cut")
    with tempfile.TemporaryDirectory(prefix="lf") as name, three_hosts.node("head", Path(name), {}):
        three_hosts.wait_for_nodes(1, {})
        with three_hosts.node("one", Path(name), {}):
            with three_hosts.node("two", Path(name), {}):
                three_hosts.wait_for_nodes(3, {})
                undisturbed = start(quiet)
                assert undisturbed.wait(600) == 0, undisturbed.stdout.read()[-3000:]
                driver = start(cut)
                while not checkpoints(s3, "cut"):
                    assert driver.poll() is None, driver.stdout.read()[-3000:]
                    time.sleep(0.1)
                three_hosts.cut("two")
                time.sleep(AWAY)
                assert driver.poll() is None, "the training waits for a second host"
                three_hosts.wait_for_nodes(2, {})
                three_hosts.heal("two")
            with three_hosts.node("two", Path(name), {}):  # as a supervisor starts it again
                assert driver.wait(600) == 0, driver.stdout.read()[-3000:]
    weights = "runs/judge/classifier.safetensors"
    assert (quiet / weights).read_bytes() == (cut / weights).read_bytes()
