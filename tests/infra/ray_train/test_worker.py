import os

import pytest
import torch

from infra.ray_train.worker import keep_to_deterministic_algorithms


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    yield
    torch.use_deterministic_algorithms(False)
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


@pytest.mark.parametrize("on_gpu", [False, True])
def test_bits_repeat_unless_asked_otherwise(on_gpu):
    keep_to_deterministic_algorithms(True, on_gpu)
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled() == on_gpu, "a layer that has none ends no run on a GPU"
    assert ("CUBLAS_WORKSPACE_CONFIG" in os.environ) == on_gpu, "cuBLAS reads it when CUDA begins"
    keep_to_deterministic_algorithms(False, on_gpu)
    assert not torch.are_deterministic_algorithms_enabled()
