"""A training whose worker and driver are killed ends with the weights of one that was left in peace."""

import shutil

import pytest
from mlflow import MlflowClient

from components.artifacts import run_folder
from pipelines.support.params import load
from tests.chaos import disturbed, prepare, weights
from tests.clones import make_clone, tiny_params
from tests.components.helpers import one_exact_thread
from tests.pipelines.in_process import train_stage

STEPS = {"steps": 400, "batch_size": 16, "report_every": 20, "save_every": 40}


@pytest.mark.timeout(900)
def test_kills_change_no_bit_of_the_result_and_every_step_is_logged_once(tmp_path, monkeypatch):
    """It is that of the loop alone, in this process. More victims and families: the benchmark chaos_exact."""
    params = tiny_params()
    params["autoencoders"]["vae"]["training"] = STEPS
    params["cluster"]["threads_per_worker"] = 1
    clone = make_clone(tmp_path, params)
    prepare(clone)
    monkeypatch.chdir(clone)
    with one_exact_thread():
        train_stage(load(), "autoencoders.vae")
    expected, history = weights(clone, "vae"), run_folder.read_history(clone / "runs/vae")
    shutil.rmtree(clone / "runs/vae")
    assert disturbed(clone, "autoencoders.vae", ["worker", "driver"]) == expected
    assert run_folder.read_history(clone / "runs/vae") == [pytest.approx(row, rel=1e-6) for row in history]

    client = MlflowClient(f"sqlite:///{clone}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "autoencode/loss")]
    assert steps == list(range(20, STEPS["steps"] + 1, 20))
