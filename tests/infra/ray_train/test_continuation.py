"""More steps for a run, or other reports of it: gone on from where that is exact, said where it is not."""

from dataclasses import replace

import pytest

from components.data.dataset import Dataset, batches
from components.training.loop import State, fit
from infra.ray_train import continuation
from infra.ray_train.checkpoints import write_state
from infra.storage.store import Store
from tests.components.helpers import assert_same, no_wrap, one_exact_thread
from tests.infra.ray_train.jobs import make_job, write_images


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("data") / "train")


def trained(job, start: State | None = None) -> State:
    with one_exact_thread():
        stream = batches(Dataset(job.data), job.training.batch_size, seed=job.seed, start=start.step if start else 0)
        functions = {"wrap": no_wrap, "report": lambda step, figures: figures, "save": lambda state: None}
        return fit(job.build(), stream, job.training, start=start, **functions)


def run_of(job, storage) -> Store:
    return Store.open(storage) / f"{job.name}-{job.hash[:16]}"


def stored(job, storage) -> None:
    """A finished run, as the driver and its worker leave it."""
    run = run_of(job, storage)
    continuation.record(job, run)
    folder = storage / run.name / "checkpoint_1"
    folder.mkdir()
    write_state(folder, trained(job))


@pytest.mark.parametrize("change", [{"steps": 9}, {"report_every": 1}, {"save_every": 2, "steps": 7}])
def test_a_longer_run_goes_on_bit_by_bit(images, tmp_path, capsys, change):
    short, longer = make_job(images, "wgan_gp"), make_job(images, "wgan_gp", **change)
    assert short.hash != longer.hash and short.endless_hash == longer.endless_hash
    stored(short, tmp_path)
    source, state = continuation.begin(longer, run_of(longer, tmp_path))
    assert source.name == run_of(short, tmp_path).name and state.step == 6
    assert "wgan_gp: goes on from step 6 of wgan_gp-" in capsys.readouterr().out
    left = trained(longer, state) if longer.training.steps > 6 else state
    whole = trained(longer)
    assert_same(left.nets, whole.nets)
    assert_same(left.average, whole.average)
    assert_same(left.optimizers, whole.optimizers)


@pytest.mark.parametrize(
    ("family", "before", "change", "told"),
    [
        ("vae", {}, {"steps": 9}, "learning rate of autoencode falls to 0 at the run's end"),
        ("wgan_gp", {"ema_snapshots": 2}, {"steps": 9}, "averages are kept at shares of the run"),
        ("wgan_gp", {"keep": "best"}, {"save_every": 2}, "training.keep best chooses among checkpoints at other steps"),
    ],
)
def test_what_depends_on_the_length_begins_anew_and_says_so(images, tmp_path, capsys, family, before, change, told):
    stored(make_job(images, family, **before), tmp_path)
    longer = make_job(images, family, **before, **change)
    assert continuation.begin(longer, run_of(longer, tmp_path)) is None
    assert f"{family}: begins at step 0, and does not go on from {family}-" in (out := capsys.readouterr().out)
    assert told in out


def test_other_reports_of_a_cosine_run_are_the_same_run(images, tmp_path):
    stored(make_job(images, "vae"), tmp_path)
    other = make_job(images, "vae", report_every=1)
    assert continuation.begin(other, run_of(other, tmp_path))[1].step == 6


def test_another_job_and_a_longer_one_are_not_gone_on_from(images, tmp_path, capsys):
    stored(make_job(images, "wgan_gp"), tmp_path)
    for other in (make_job(images, "wgan_gp", steps=4), replace(make_job(images, "wgan_gp", steps=9), seed=1)):
        assert continuation.begin(other, run_of(other, tmp_path)) is None
    assert capsys.readouterr().out == ""
