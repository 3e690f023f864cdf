"""Run folders that carry averages of other lengths."""

import pytest

from components.artifacts import run_folder
from components.artifacts.run_folder import Provenance
from components.data.dataset import batches
from components.errors import SamplerError
from components.training import ema
from components.training.loop import TrainingConfig, fit
from tests.components.helpers import IMAGES, Rows, assert_same, build, no_wrap

PROVENANCE = Provenance(data="d", code="c", job="j", seed=0, step=8)


@pytest.fixture(scope="module")
def trained():
    """A tiny autoencoder after eight steps, with two snapshots of each trace."""
    family = build("vae")
    config = TrainingConfig(steps=8, batch_size=4, ema_snapshots=2)
    stream = batches(Rows(IMAGES), 4)
    state = fit(
        family, stream, config, start=None, wrap=no_wrap, report=lambda step, figures: figures, save=lambda state: None
    )
    return family, state


def test_a_length_asked_for_is_built_from_the_folders_snapshots(trained, tmp_path):
    family, state = trained
    run_folder.write(tmp_path / "vae", "vae", family, state, PROVENANCE)
    assert [(kept["step"], kept["sigma_rel"]) for kept in run_folder.read_averages(tmp_path / "vae")] == [
        (4, 0.05),
        (4, 0.1),
        (8, 0.05),
        (8, 0.1),
    ]
    default = run_folder.load(tmp_path / "vae").family.nets["autoencoder"].state_dict()
    assert_same(default, state.average["autoencoder"])
    other = run_folder.load(tmp_path / "vae", ema_sigma_rel=0.15).family.nets["autoencoder"].state_dict()
    assert_same(other, ema.reconstruct(state.snapshots, 0.15, 8)["autoencoder"])
    assert any((other[key] != value).any() for key, value in default.items())


def test_a_folder_without_snapshots_says_what_was_missing(trained, tmp_path):
    family, state = trained
    state = type(state)(**{**vars(state), "snapshots": []})
    run_folder.write(tmp_path / "vae", "vae", family, state, PROVENANCE)
    with pytest.raises(SamplerError, match=r"averages\.safetensors: missing; .* training\.ema_snapshots"):
        run_folder.load(tmp_path / "vae", ema_sigma_rel=0.15)


def test_a_damaged_file_of_averages_is_named(trained, tmp_path):
    family, state = trained
    run_folder.write(tmp_path / "vae", "vae", family, state, PROVENANCE)
    path = tmp_path / "vae" / run_folder.AVERAGES
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(SamplerError, match=r"averages\.safetensors: not a run's averages"):
        run_folder.read_averages(tmp_path / "vae")


def test_the_best_checkpoint_lies_beside_the_last(trained, tmp_path):
    family, state = trained
    average = {"autoencoder": {key: value + 1 for key, value in state.average["autoencoder"].items()}}
    best = run_folder.Best(4, "held_out_loss", 0.1, average)
    run_folder.write(tmp_path / "vae", "vae", family, state, PROVENANCE, best)
    last, kept = (run_folder.load(tmp_path / "vae", checkpoint=which).family.nets for which in ("last", "best"))
    assert_same(last["autoencoder"].state_dict(), state.average["autoencoder"])
    assert_same(kept["autoencoder"].state_dict(), average["autoencoder"])
    read = run_folder.Best.from_file(tmp_path / "vae" / run_folder.BEST)
    assert (read.step, read.figure, read.value) == (4, "held_out_loss", 0.1)
    (tmp_path / "vae" / run_folder.BEST).write_bytes(b"damaged")
    with pytest.raises(SamplerError, match=r"best\.safetensors: not a run's best checkpoint"):
        run_folder.load(tmp_path / "vae", checkpoint="best")
    (tmp_path / "vae" / run_folder.BEST).unlink()
    with pytest.raises(SamplerError, match=r"best\.safetensors: missing; .* training\.keep: best"):
        run_folder.load(tmp_path / "vae", checkpoint="best")
