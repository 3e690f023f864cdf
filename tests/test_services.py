"""A training on real services: inputs and checkpoints in a bucket, figures on MLflow's server and Postgres."""

import sys
import urllib.error
import urllib.request

import pytest

from tests.clones import command, make_clone, tiny_params
from tests.infra.mlflow_server import PASSWORD, missing, mlflow_server, postgres

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.skipif(bool(missing()), reason=missing())]


@pytest.fixture
def tracking(s3, tmp_path):
    with postgres() as database, mlflow_server(database, "s3://bucket/mlflow", tmp_path / "mlflow.log") as address:
        yield address


def status(address: str, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=30) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_a_training_with_its_inputs_and_checkpoints_in_a_bucket_tracked_to_the_server(
    s3, endpoint, tracking, tmp_path, monkeypatch
):
    search = f"{tracking}/api/2.0/mlflow/experiments/search?max_results=1"
    assert status(search) == 401, "nobody without a password"
    assert status(search, Host="elsewhere.example:5000") == 403, "nobody who was led here by another name"

    params = tiny_params()
    params["tracking"]["uri"] = tracking
    params["cluster"] = {"address": "local", "num_workers": 1, "storage_path": "s3://bucket/ray"}
    clone = make_clone(tmp_path / "clone", params)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    monkeypatch.setenv("LATENT_FOUNDRY_CACHE", str(tmp_path / "node"))
    for module, *arguments in (["prepare"], ["train", "judges.judge"], ["train", "autoencoders.vae"]):
        done = command(clone, sys.executable, "-m", f"pipelines.{module}", *arguments)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    done = command(clone, sys.executable, "-m", "pipelines.encode")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

    stored = [item["Key"] for item in s3.list_objects_v2(Bucket="bucket")["Contents"]]
    for part in ("ray/inputs/files/", "ray/judge-", "state.pt", "mlflow/"):
        assert any(part in key for key in stored), part
    assert not (clone / ".cache/ray").exists()
    assert any((tmp_path / "node").glob("*.lock")), "the worker fetched its inputs"

    from mlflow import MlflowClient

    client = MlflowClient(tracking)
    experiment = client.get_experiment_by_name("tiny")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"judge", "vae"}
    history = client.get_metric_history(runs["judge"].info.run_id, "classify/loss")
    assert [metric.step for metric in history] == [10, 20]
    assert client.list_artifacts(runs["vae"].info.run_id, "previews"), "handed through to the bucket"

    # the weights are those of the same training in a folder
    local = make_clone(tmp_path / "local", {**params, "cluster": {"num_workers": 1}, "tracking": {}})
    for module, *arguments in (["prepare"], ["train", "judges.judge"]):
        assert command(local, sys.executable, "-m", f"pipelines.{module}", *arguments).returncode == 0
    name = "runs/judge/classifier.safetensors"
    found = sorted(path.name for path in (clone / "runs/judge").iterdir())
    assert (clone / name).read_bytes() == (local / name).read_bytes(), found
