import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytest_plugins = ["tests.infra.s3"]
# fixtures of a whole session that cost seconds: all tests of one run in one process
COSTLY = ("ray_session", "measured_project", "described_project")
LONG = ("tests/test_", "tests/pipelines/", "tests/infra/")  # begun first: no process is left with one at the end


def pytest_itemcollected(item: pytest.Item) -> None:
    """Groups for `--dist loadgroup`: a file's tests stay together, and so do those of a costly fixture."""
    group = next((name for name in COSTLY if name in item.fixturenames), item.nodeid.partition("::")[0])
    item.add_marker(pytest.mark.xdist_group("measured_project" if group == "described_project" else group))


@pytest.hookimpl(trylast=True)  # pytest orders them by their fixtures in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: ("ray_session" not in item.fixturenames, not item.nodeid.startswith(LONG)))


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Nets as small as those of the tests are slower on several threads, much slower on a busy machine."""
    import torch

    torch.set_num_threads(1)


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
