"""A training whose store fails one call in five, dies in the middle, and comes back."""

import re
import time

import pytest

from tests import chaos
from tests.clones import make_clone, tiny_params
from tests.infra.s3 import Faulty, one_in_five, serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
PATIENCE = 600  # seconds for a stage to give up a store that is gone
STEPS = {"steps": 600, "batch_size": 64, "report_every": 50, "save_every": 50}


@pytest.fixture
def clone(s3, tmp_path, monkeypatch):
    monkeypatch.setenv("LATENT_FOUNDRY_CACHE", str(tmp_path / "node"))
    params = tiny_params()
    params["judges"]["judge"]["training"] = STEPS
    params["cluster"] = {"address": "local", "num_workers": 1, "threads_per_worker": 1, "max_failures": 2}
    clone = make_clone(tmp_path / "clone", params)
    chaos.prepare(clone)
    return clone


def stored(s3) -> int:
    found = s3.list_objects_v2(Bucket="bucket", Prefix="ray/judge-").get("Contents", ())
    return len([item for item in found if item["Key"].endswith("state.sha256")])


def test_a_store_that_fails_now_and_then_and_dies_changes_no_weight(s3, clone, monkeypatch):
    expected = chaos.undisturbed(clone, "judges.judge")
    monkeypatch.setenv("LATENT_FOUNDRY_CLUSTER", "{storage_path: 's3://bucket/ray'}")
    log = clone / "chaos.log"
    with serving(Faulty(one_in_five)) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        stage = chaos.start(clone, "judges.judge")
        while stored(s3) < 2:
            assert stage.poll() is None, log.read_text()[-3000:]
            time.sleep(0.05)
    assert stage.wait(PATIENCE) == 2, log.read_text()[-3000:]
    assert re.match(r"error: s3://bucket/ray/.* the same command goes on from it$", log.read_text().splitlines()[-1])
    assert not (clone / "runs/judge").exists()
    failing = Faulty(one_in_five)
    with serving(failing) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        again = chaos.start(clone, "judges.judge")
        assert again.wait(PATIENCE) == 0, log.read_text()[-3000:]
    assert len(failing.calls) > 20
    assert chaos.weights(clone, "judge") == expected
