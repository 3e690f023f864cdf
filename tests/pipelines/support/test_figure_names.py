"""Figures that params.yaml names and nobody will measure are refused before anything is trained."""

import copy
from pathlib import Path

import pytest
import yaml

from components.errors import ConfigError
from pipelines.support.params import load

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture()
def content() -> dict:
    return yaml.safe_load((ROOT / "params.yaml").read_text())


def loaded(content: dict, tmp_path: Path):
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(content))
    return load(path)


def refusal(content: dict, tmp_path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        loaded(content, tmp_path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("block", "told"),
    [
        (
            {"metric": "frechet_distanse"},
            "promote.metric: no figure 'frechet_distanse'; expected one of frechet",
        ),
        ({"metric": "frechet_distanse"}, "; the nearest is frechet_distance"),
        ({"tie_break": "speed"}, "promote.tie_break: no figure 'speed'; expected one of"),
        ({"second_opinion": {"metric": "pixels"}}, "promote.second_opinion.metric: no figure 'pixels'"),
        ({"guards": {"recal": {"at_least": 1}}}, "promote.guards.recal: no figure 'recal'"),
        ({"metric": "prior_spread"}, "promote.metric: no figure 'prior_spread'"),  # of checkpoints alone
        ({"metric": "lpips_diversity"}, "promote.metric: 'lpips_diversity' is not measured; expected evaluate.lpips"),
        ({"guards": {"recall": {"at_least": 1, "of": "judge_acuracy"}}}, "the nearest is judge_accuracy"),
        ({"guards": {"ms_single": {"at_most": 1, "of": "real"}}}, "guards.ms_single.of: real rows have no ms_single"),
    ],
)
def test_a_policy_by_figures_that_nobody_measures_is_refused(content, tmp_path, block, told):
    content["promote"] |= block
    assert told in refusal(content, tmp_path)


def test_labels_need_a_judge_as_a_metric_and_are_left_out_as_a_guard(content, tmp_path):
    del content["inputs"]["evaluate/judge"]
    content["evaluate"]["extractor"] = {"name": "inception", "weights": "weights.pth"}
    loaded(content, tmp_path)
    content["promote"]["metric"] = "label_agreement"
    assert "'label_agreement' is not measured; expected evaluate/judge in inputs" in refusal(content, tmp_path)


def test_figures_of_a_judge_that_nothing_here_describes_are_left_to_promotion(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content["inputs"]["evaluate/judge"] = "runs/of_another_project"
    content["promote"]["metric"] = "motion_agreement"
    loaded(content, tmp_path)
    content["inputs"]["evaluate/judge"] = "runs/judge"
    assert "no figure 'motion_agreement'" in refusal(content, tmp_path)
    content["judges"]["judge"] |= {"family": "film_judge", "model": {}}
    loaded(content, tmp_path)


@pytest.mark.parametrize(
    ("key", "figure", "told"),
    [
        (
            "samplers.ldm",
            "fid",
            "ldm.training.keep_by: no figure 'fid' of checkpoints; expected one of held_out_loss",
        ),
        ("samplers.ldm", "held_out_los", "; the nearest is held_out_loss"),
        ("samplers.ldm", "loss_gap_stderr", "no figure 'loss_gap_stderr'"),  # better neither way
        ("samplers.cgan", "held_out_loss", "expected one of classes_hit, label_entropy, recall, ndb"),
        ("samplers.cgan", "accuracy_train", "no figure 'accuracy_train'"),  # better neither way
        ("autoencoders.vae", "psnr", "those from psnr on need a judge in inputs"),
    ],
)
def test_the_best_checkpoint_is_told_by_a_figure_that_there_is(content, tmp_path, key, figure, told):
    group, name = key.split(".")
    content[group][name]["training"] |= {"keep": "best", "keep_by": figure}
    assert told in refusal(content, tmp_path)


def test_figures_of_checkpoints_that_there_are_pass(content, tmp_path):
    def keeps(key: str, figure: str) -> None:
        changed, (group, name) = copy.deepcopy(content), key.split(".")
        changed[group][name]["training"] |= {"keep": "best", "keep_by": figure}
        loaded(changed, tmp_path)

    keeps("samplers.ldm", "live_loss_gap")
    keeps("samplers.cgan", "ndb")
    content["inputs"] |= {"student/judge": "runs/judge", "vae/judge": "runs/judge"}
    keeps("samplers.student", "frechet_2_steps")
    keeps("autoencoders.vae", "psnr")
    keeps("autoencoders.vae", "held_out_bits")  # where its model has a likelihood
