"""Parts of work by this process or by several: the same results in the same order, and the worker's own error."""

import functools
import os

import pytest

from components.errors import DataError, InputError
from infra.config import ClusterConfig
from infra.ray_cluster.worker_pool import worker_pool
from pipelines.support.paths import ROOT


def niceness():
    return lambda part: os.nice(0)


def worker(factor: int):
    def work(part: int) -> tuple[int, int]:
        if part < 0:
            raise InputError(f"part {part} is negative")
        return factor * part, os.getpid()

    return work


def test_one_worker_is_this_process_and_needs_no_ray():
    with worker_pool(ClusterConfig(), ROOT) as workers:
        assert not workers.spreads
        assert list(workers.map(lambda: worker(3), [1, 2])) == [(3, os.getpid()), (6, os.getpid())]


def test_two_workers_share_one_piece_of_work_after_another_and_are_not_niced(ray_session):
    with worker_pool(ClusterConfig(num_workers=2), ROOT) as workers:
        first = list(workers.map(functools.partial(worker, 2), range(20)))
        second = list(workers.map(functools.partial(worker, 5), range(20)))
        assert set(workers.map(niceness, range(4))) == {os.nice(0)}
        with pytest.raises(InputError, match="part -1 is negative"):
            list(workers.map(functools.partial(worker, 2), [1, -1]))
    assert [value for value, _ in first] == [2 * part for part in range(20)]
    assert [value for value, _ in second] == [5 * part for part in range(20)]
    processes = {process for _, process in first}
    assert len(processes) == 2 and os.getpid() not in processes
    assert {process for _, process in second} == processes


def test_a_missing_bucket_is_told_before_a_cluster_is_asked(s3, tmp_path):
    cluster = ClusterConfig(address="127.0.0.1:9", num_workers=2, storage_path="s3://nowhere/ray")
    with pytest.raises(DataError, match="there is no such bucket"), worker_pool(cluster, tmp_path):
        pass
