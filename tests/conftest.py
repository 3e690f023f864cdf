import os
import random
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytest_plugins = ["tests.infra.s3"]

# files of a minute or more begin first, so that processes side by side (`make test`) end together
LONGEST = (
    "tests/test_end_to_end.py",
    "tests/infra/serving/test_ray_serve.py",
    "tests/infra/ray_train/test_driver.py",
    "tests/test_chaos.py",
    "tests/pipelines/test_serve.py",
    "tests/infra/ray_cluster/test_closed_session.py",
    "tests/test_adding_a_family.py",
    "tests/infra/ray_cluster/test_encoding.py",
    "tests/pipelines/test_dvc.py",
    "tests/infra/tracking/test_registry.py",
    "tests/infra/storage/test_buckets.py",
)


def pytest_collection_modifyitems(items):
    begun = {ROOT / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: begun.get(item.path, len(begun)))


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Nets as small as those of the tests are slower on several threads, much slower on a busy machine."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded():
    """Each test draws the same wherever it runs: what holds for all draws but a few would fail now and then."""
    import numpy as np
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def ray_session():
    """One Ray for the whole test session: four CPUs, shared by every test that asks for it."""
    import ray

    from infra.ray_cluster import closed_session
    from infra.ray_cluster.ray_session import ENVIRONMENT

    # no test of this session gives notice, and its watcher would be one process more for each training
    for name, value in (ENVIRONMENT | {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}).items():
        os.environ.setdefault(name, value)
    with closed_session.opened():
        ray.init(
            address="local",
            num_cpus=4,
            include_dashboard=False,
            logging_level="warning",
            log_to_driver=False,
            runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
        )
        yield
        ray.shutdown()
