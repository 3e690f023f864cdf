"""A training whose process is killed ends with the weights of one that was left in peace."""

import pytest
from mlflow import MlflowClient

from tests.chaos import disturbed, prepare, undisturbed
from tests.clones import make_clone, tiny_params

STEPS = {"steps": 600, "batch_size": 16, "report_every": 20, "save_every": 40}


@pytest.mark.timeout(600)
def test_a_kill_changes_no_bit_of_the_result(tmp_path):
    """More victims and families: the benchmark chaos_exact."""
    params = tiny_params()
    params["autoencoders"]["vae"]["training"] = STEPS
    clone = make_clone(tmp_path, params)
    prepare(clone)
    expected = undisturbed(clone, "autoencoders.vae")
    assert disturbed(clone, "autoencoders.vae", ["driver"]) == expected

    client = MlflowClient(f"sqlite:///{clone}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "autoencode/loss")]
    assert steps == list(range(20, STEPS["steps"] + 1, 20))
