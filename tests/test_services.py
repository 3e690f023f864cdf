"""A training on real services: inputs and checkpoints in a bucket, figures on MLflow's server and Postgres."""

import sys
import urllib.error
import urllib.request

import pytest

from components.artifacts import run_folder
from components.data.dataset import Dataset, batches
from components.training.loop import fit
from pipelines.support.params import load
from pipelines.train import make_job
from tests.clones import command, make_clone, tiny_params
from tests.components.helpers import assert_same, no_wrap, one_exact_thread
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
    params["cluster"] = {
        "address": "local",
        "num_workers": 1,
        "threads_per_worker": 1,
        "storage_path": "s3://bucket/ray",
    }
    clone = make_clone(tmp_path / "clone", params)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    monkeypatch.setenv("LATENT_FOUNDRY_CACHE", str(tmp_path / "node"))
    for module, *arguments in (["prepare"], ["train", "judges.judge"]):
        done = command(clone, sys.executable, "-m", f"pipelines.{module}", *arguments)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

    stored = [item["Key"] for item in s3.list_objects_v2(Bucket="bucket")["Contents"]]
    for part in ("ray/inputs/files/", "ray/judge-", "state.pt"):
        assert any(part in key for key in stored), part
    assert not (clone / ".cache/ray").exists()
    assert any((tmp_path / "node").glob("*.lock")), "the worker fetched its inputs"

    from mlflow import MlflowClient

    client = MlflowClient(tracking)
    experiment = client.get_experiment_by_name("tiny")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"judge"}
    history = client.get_metric_history(runs["judge"].info.run_id, "classify/loss")
    assert [metric.step for metric in history] == [10, 20]
    client.log_text(runs["judge"].info.run_id, "handed through", "note.txt")
    keys = [item["Key"] for item in s3.list_objects_v2(Bucket="bucket", Prefix="mlflow/")["Contents"]]
    assert any(key.endswith("note.txt") for key in keys), "the server alone has the bucket's keys"

    monkeypatch.chdir(clone)
    job = make_job(load(), "judges.judge")
    with one_exact_thread():
        expected = fit(
            job.build(),
            batches(Dataset(clone / "data/images/train"), job.training.batch_size, seed=job.seed),
            job.training,
            start=None,
            wrap=no_wrap,
            report=lambda step, figures: figures,
            save=lambda state: None,
        )
    found = run_folder.load(clone / "runs/judge").family.nets["classifier"].state_dict()
    assert_same(found, expected.average["classifier"])
