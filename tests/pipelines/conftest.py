"""A tiny project, described and measured once for all tests of the stages. Tests work on copies of it."""

import shutil

import pytest

from pipelines import evaluate, reconstruct, reference
from tests.pipelines.measured import write_project


@pytest.fixture(scope="session")
def described_project(tmp_path_factory):
    """Untrained runs, and the real images as the extractor sees them. Not to be written to."""
    root = tmp_path_factory.mktemp("described")
    write_project(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        reference.main([])
    return root


@pytest.fixture(scope="session")
def measured_project(described_project, tmp_path_factory):
    """The same with both samplers and the autoencoder measured. Not to be written to."""
    root = tmp_path_factory.mktemp("measured") / "project"
    shutil.copytree(described_project, root)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for sampler in ("ldm", "dcgan"):
            evaluate.main([f"samplers.{sampler}"])
        reconstruct.main(["autoencoders.vae"])
    return root
