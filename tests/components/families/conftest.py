"""Run folders of every family."""

from __future__ import annotations

import pytest

from components.artifacts import run_folder
from components.families import family_names
from tests.components.families.contract import PROVENANCE, trained
from tests.components.helpers import one_exact_thread


@pytest.fixture(scope="module")
def exact():
    """One thread and deterministic algorithms: what is equal is equal to the bit."""
    with one_exact_thread():
        yield


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """The run folder of every family, trained for a few steps, with its family and state."""
    made = {}
    for name in family_names():
        with one_exact_thread():
            family, state = trained(name)
        folder = tmp_path_factory.mktemp("runs") / name
        run_folder.write(folder, name, family, state, PROVENANCE)
        made[name] = folder, family, state
    return made


@pytest.fixture
def copy(folders, tmp_path):
    """Writes a run folder of its own, by the name of its family."""

    def copy_of(name: str):
        _, family, state = folders[name]
        run_folder.write(tmp_path / name, name, family, state, PROVENANCE)
        return tmp_path / name, family

    return copy_of
