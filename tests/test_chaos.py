"""A training whose worker, driver and Ray node are killed ends with the weights of one that was left in peace."""

import pytest
from mlflow import MlflowClient

from tests.chaos import disturbed, prepare, undisturbed
from tests.clones import make_clone, tiny_params


@pytest.mark.timeout(900)
def test_kills_change_no_bit_of_the_result(tmp_path):
    params = tiny_params()
    params["autoencoders"]["vae"]["training"] = {"steps": 800, "batch_size": 16, "report_every": 20, "save_every": 40}
    clone = make_clone(tmp_path, params)
    prepare(clone)
    expected = undisturbed(clone, "autoencoders.vae")
    assert disturbed(clone, "autoencoders.vae", ["worker", "driver", "raylet"]) == expected

    client = MlflowClient(f"sqlite:///{clone}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "autoencode/loss")]
    assert steps == list(range(20, 801, 20))
