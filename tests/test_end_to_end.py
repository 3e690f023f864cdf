"""The whole pipeline as a user runs it: `dvc repro` in a clone, with the parameters of tests/tiny.params.yaml."""

import json
import sys
from pathlib import Path

import pytest
import ray

from tests.clones import command, make_clone, tiny_params
from tests.infra.chromium import EXECUTABLE, Page


@pytest.fixture(scope="module")
def clone(tmp_path_factory, ray_session) -> Path:
    """The working tree with tiny parameters, on the test session's Ray."""
    params = tiny_params()
    del params["samplers"]["wgan_gp"], params["inputs"]["wgan_gp/judge"]  # two families show what a third would
    params["cluster"]["address"] = ray.get_runtime_context().gcs_address
    return make_clone(tmp_path_factory.mktemp("clone"), params)


@pytest.fixture(scope="module")
def reproduced(clone) -> Path:
    done = command(clone, "dvc", "repro")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return clone


@pytest.mark.timeout(900)
def test_raw_digits_in_a_registered_champion_and_a_report_out(reproduced):
    promoted = json.loads((reproduced / "promoted.json").read_text())
    assert promoted["version"] == "1"
    folder = reproduced / promoted["run_folder"]
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors", ".csv"}
    for sampler in ("ldm", "dcgan"):
        metrics = json.loads((reproduced / f"metrics/{sampler}.json").read_text())
        assert metrics["frechet_distance"] > 0
        (details,) = metrics["details"]
        assert all(candidate["figures"]["frechet_distance"] > 0 for candidate in details["candidates"])
    page = (reproduced / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org/", "")
    assert promoted["sampler"] in page
    assert list(reproduced.glob("mlartifacts/**/report/report.html")), "the page lies beside the champion's training"
    shown = command(reproduced, sys.executable, "-m", "pipelines.promote", "--show")
    assert "champion: " + promoted["sampler"] in shown.stdout


def test_nothing_to_do_the_second_time(reproduced):
    before = (reproduced / "dvc.lock").read_text()
    again = command(reproduced, "dvc", "repro")
    assert "Data and pipelines are up to date" in again.stdout
    assert (reproduced / "dvc.lock").read_text() == before


def test_dvc_shows_metrics_and_plots(reproduced, tmp_path):
    shown = command(reproduced, "dvc", "metrics", "show", "--json")
    assert "summary/ldm.json" in shown.stdout
    table = command(reproduced, "dvc", "metrics", "show").stdout.splitlines()
    assert max(len(line.rstrip()) for line in table) <= 80, "a terminal's width"
    plotted = command(reproduced, "dvc", "plots", "show")
    assert plotted.returncode == 0, plotted.stderr
    page = reproduced / "dvc_plots/index.html"
    assert "<script src" not in page.read_text(), "what draws is in the page, not somewhere in the network"
    if EXECUTABLE is None:
        return
    shown = Page(page.as_uri(), tmp_path / "profile")
    try:
        shown.wait_for("document.readyState === 'complete'")
        drawn, curves = (shown.evaluate(f"document.querySelectorAll('{kind}').length") for kind in ("svg", "polyline"))
    finally:
        shown.close()
    assert drawn > curves >= 4, "a curve of each phase, a plot of each sampler's candidates"
    assert all(address.startswith("file:") for address in shown.requests) and not shown.problems


def test_an_altered_shard_stops_training_before_it_starts(reproduced):
    shard = next((reproduced / "data/images/train").glob("*.image.npy"))
    content = shard.read_bytes()
    shard.unlink()  # DVC's cache may be linked here
    shard.write_bytes(content[:-7])
    try:
        done = command(reproduced, sys.executable, "-m", "pipelines.train", "judges.judge")
    finally:
        shard.write_bytes(content)
    assert done.returncode == 2
    assert done.stderr.strip().count("\n") == 0
    assert shard.name in done.stderr
    assert "truncated or altered" in done.stderr


def test_a_damaged_sampler_folder_is_not_evaluated(reproduced):
    weights = reproduced / "runs/dcgan/generator.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    metrics = (reproduced / "metrics/dcgan.json").read_text()
    try:
        done = command(reproduced, sys.executable, "-m", "pipelines.evaluate", "samplers.dcgan")
    finally:
        weights.write_bytes(content)
    assert done.returncode == 2
    assert "generator.safetensors: missing" in done.stderr
    assert (reproduced / "metrics/dcgan.json").read_text() == metrics
