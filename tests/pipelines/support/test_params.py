"""params.yaml at the door: everything wrong ends in one line that says where."""

import copy
from pathlib import Path

import pytest
import yaml

from components.errors import ConfigError
from pipelines.support.params import load, name_of, train_block

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture()
def content() -> dict:
    return yaml.safe_load((ROOT / "params.yaml").read_text())


def refusal(content: dict, tmp_path: Path) -> str:
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError) as caught:
        load(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_shipped_file_is_valid():
    params = load(ROOT / "params.yaml")
    assert train_block(params, "samplers.ldm").family == "latent_diffusion"
    assert name_of("samplers.ldm") == "ldm"


def test_every_preset_is_valid():
    for path in sorted((ROOT / "presets").glob("*.yaml")):
        load(path)


def test_a_number_of_workers_may_be_a_range(content, tmp_path):
    path = tmp_path / "params.yaml"
    content["cluster"]["num_workers"] = [2, 8]
    path.write_text(yaml.safe_dump(content))
    cluster = load(path).cluster
    assert (cluster.elastic, cluster.max_workers) == (True, 8)
    content["cluster"]["num_workers"] = [8, 2]
    assert "expected [min, max] with min <= max" in refusal(content, tmp_path)
    content["cluster"] |= {"num_workers": [1, 2], "max_failures": 0}
    assert "needs max_failures above 0" in refusal(content, tmp_path)
    content["cluster"]["num_workers"] = 0
    assert "num_workers" in refusal(content, tmp_path)


def test_unknown_key_is_named(content, tmp_path):
    content["samplers"]["cgan"]["training"]["stepz"] = 3
    assert "samplers.cgan.training.stepz: unknown key" in refusal(content, tmp_path)


def test_wrong_type_is_named_with_what_was_found(content, tmp_path):
    content["samplers"]["cgan"]["training"]["steps"] = "many"
    message = refusal(content, tmp_path)
    assert "samplers.cgan.training.steps" in message
    assert "'many'" in message


def test_impossible_value_is_refused(content, tmp_path):
    content["samplers"]["ldm"]["training"]["batch_size"] = 0
    assert "samplers.ldm.training.batch_size" in refusal(content, tmp_path)


def test_a_familys_own_block_is_checked(content, tmp_path):
    content["samplers"]["ldm"]["model"]["objective"] = "guess"
    assert "samplers.ldm.model.objective" in refusal(content, tmp_path)


def test_fields_that_do_not_fit_together_are_refused(content, tmp_path):
    content["samplers"]["ldm"]["model"]["backbone"]["attention"] = [True]
    assert "widths has 2 entries and attention 1" in refusal(content, tmp_path)


def test_candidates_are_checked_against_the_familys_settings(content, tmp_path):
    content["samplers"]["cgan"]["candidates"] = [{"guidance_scale": 2}]
    assert "samplers.cgan.candidates.0.guidance_scale: unknown key" in refusal(content, tmp_path)


def test_guidance_needs_rows_without_their_class(content, tmp_path):
    block = content["samplers"]["ldm"]
    block["model"]["label_dropout"] = 0.0
    told = "samplers.ldm.candidates.0.guidance_scale: this model is never trained without its class"
    assert told in refusal(content, tmp_path)
    block["candidates"] = [{"num_inference_steps": 8}]  # by default, guidance is where it was learned
    del content["samplers"]["student"], content["inputs"]["student/teacher"]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    load(tmp_path / "params.yaml")


def test_a_student_without_a_teacher_learns_what_nothing_is(content, tmp_path):
    del content["inputs"]["student/teacher"]
    content["samplers"]["student"] |= {"family": "shortcut", "model": {"label_dropout": 0.0}}
    assert "expected student/teacher: runs/..., which student needs" in refusal(content, tmp_path)
    for learned in ({"label_dropout": 0.1}, {"label_dropout": 0.0, "most_guidance": 1.0}):
        content["samplers"]["student"] |= {"model": learned, "candidates": [{"guidance_scale": 1.0}]}
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
        load(tmp_path / "params.yaml")


def test_another_averaging_length_needs_snapshots(content, tmp_path):
    block = content["samplers"]["ldm"]
    block["candidates"][0]["ema_sigma_rel"] = 0.1
    assert "samplers.ldm.candidates.0.ema_sigma_rel: needs training.ema_snapshots" in refusal(content, tmp_path)
    block["training"]["ema_snapshots"] = 4
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(content))
    load(path)


def test_the_best_checkpoint_needs_a_training_that_keeps_it(content, tmp_path):
    block = content["samplers"]["ldm"]
    block["candidates"][0]["checkpoint"] = "best"
    assert "samplers.ldm.candidates.0.checkpoint: best needs training.keep: best" in refusal(content, tmp_path)
    block["training"]["keep"] = "best"
    block["candidates"][0]["checkpoint"] = "first"
    assert "candidates.0.checkpoint: expected last or best, found 'first'" in refusal(content, tmp_path)
    block["candidates"][0]["checkpoint"] = "best"
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(content))
    load(path)


@pytest.mark.parametrize(
    ("training", "told"),
    [
        ({"accumulate": 2}, "judges.clip.training.accumulate: clip compares all rows of a batch"),
        ({"batch_size": 1}, "judges.clip.training.batch_size: clip compares rows; expected at least 2, found 1"),
        ({"accumulate": 9, "batch_size": 8}, "accumulate: expected at most a part a row, 8, found 9"),
    ],
)
def test_what_contrasts_a_batch_needs_it_whole(content, tmp_path, training, told):
    block = {"family": "clip", "data": "data/images/train"}
    content["judges"]["clip"] = block | {"training": {"steps": 1, "batch_size": 8, **training}}
    assert told in refusal(content, tmp_path)


@pytest.mark.parametrize("backbone", ["dit", None, 3, ["unet"]])
def test_a_block_that_is_none_is_told(content, tmp_path, backbone):
    content["samplers"]["ldm"]["model"]["backbone"] = backbone
    assert "samplers.ldm.model.backbone" in refusal(content, tmp_path)


@pytest.mark.parametrize("group, name", [("autoencoders", "vae"), ("judges", "judge"), ("samplers", "ldm")])
@pytest.mark.parametrize("model", ["x", 3, [1]])
def test_a_model_that_is_no_block_is_told(content, tmp_path, group, name, model):
    content[group][name]["model"] = model
    assert f"{group}.{name}.model" in refusal(content, tmp_path)


def test_a_long_value_is_shown_in_part(content, tmp_path):
    content["samplers"]["of a bad name, which names no folder"] = content["samplers"]["ldm"]
    assert len(refusal(content, tmp_path)) < 400


def test_inputs_in_a_circle_are_told(content, tmp_path):
    content["samplers"]["other"] = copy.deepcopy(content["samplers"]["ldm"])
    content["inputs"] |= {"ldm/start": "runs/other", "other/start": "runs/ldm"}
    assert "leads in a circle" in refusal(content, tmp_path)


@pytest.mark.parametrize("space", [{"num_inference_steps": [50, 5]}, {"num_inference_steps": []}])
def test_a_space_that_holds_nothing_is_refused_before_training(content, tmp_path, space):
    content["evaluate"]["search"] = {"trials": 2, "space": space}
    assert "evaluate.search.space" in refusal(content, tmp_path)


def test_a_space_of_settings_that_no_sampler_has_is_refused(content, tmp_path):
    content["evaluate"]["search"] = {"trials": 2, "space": {"num_inference_step": [5, 50]}}
    told = refusal(content, tmp_path)
    assert "evaluate.search.space.num_inference_step: no sampler's setting" in told
    assert told.endswith("; the nearest is num_inference_steps")


@pytest.mark.parametrize(
    ("block", "told"),
    [
        ({"num_samples": 5}, "num_samples: expected more than neighbours (5), found 5"),
        ({"neighbour_images": 3}, "neighbour_images: expected more than neighbours (5), found 3"),
        ({"snapshot_samples": 1}, "snapshot_samples: a distance needs two or more"),
    ],
)
def test_an_evaluation_on_too_few_images_is_refused_before_training(content, tmp_path, block, told):
    content["evaluate"] |= block
    assert told in refusal(content, tmp_path)


def test_guards_that_nothing_passes_and_names_that_no_registry_takes(content, tmp_path):
    content["promote"]["guards"]["ms_per_image"] = {"at_least": 2, "at_most": 1}
    assert "nothing is at least 2 and at most 1" in refusal(content, tmp_path)
    del content["promote"]["guards"]["ms_per_image"]
    for name in ("o'hara", "a/b", "", "a" * 300):
        content["promote"]["registered_model"] = name
        assert "promote.registered_model" in refusal(content, tmp_path)


def test_latents_have_no_bounds_to_threshold(content, tmp_path):
    content["samplers"]["ldm"]["candidates"].append({"dynamic_threshold": 0.995})
    number = len(content["samplers"]["ldm"]["candidates"]) - 1
    assert f"samplers.ldm.candidates.{number}.dynamic_threshold: latents have no bounds" in refusal(content, tmp_path)
    content["samplers"]["ldm"]["data"] = "data/images/train"
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(content))
    load(path)


def test_tokens_have_no_crops(content, tmp_path):
    content["encode"]["latents"] |= {"crops": 2, "tokens": {}}
    assert "encode.latents: crops: token samplers learn from tokens.shifts" in refusal(content, tmp_path)


@pytest.mark.parametrize(
    ("block", "told"),
    [
        ({"crops": {"cover": 2}}, "data.crops: frame: expected at least cover (2), found 1.5"),
        ({"crops": {"cover": 0.5}}, "data.crops.cover"),
        ({"crops": {}, "source": "moving_digits"}, "data: crops: images alone have them, found medium video"),
    ],
)
def test_crops_that_cannot_be_are_refused(content, tmp_path, block, told):
    content["data"] |= block
    assert told in refusal(content, tmp_path)


def test_a_sampler_without_candidates_is_refused(content, tmp_path):
    content["samplers"]["cgan"]["candidates"] = []
    assert "samplers.cgan.candidates: empty" in refusal(content, tmp_path)


def test_a_guard_of_before_is_refused_with_its_new_form(content, tmp_path):
    content["promote"]["max_ms_per_image"] = 7
    assert "expected guards: {ms_per_image: {at_most: 7}}" in refusal(content, tmp_path)


def test_an_unknown_family_lists_the_known_ones(content, tmp_path):
    content["samplers"]["cgan"]["family"] = "dcgam"
    message = refusal(content, tmp_path)
    assert "samplers.cgan.family" in message
    assert "wgan_gp" in message


def test_a_classifier_is_no_sampler(content, tmp_path):
    content["samplers"]["cgan"] = {**content["judges"]["judge"]}
    assert "cannot be a sampler" in refusal(content, tmp_path)


def test_a_number_that_yaml_reads_as_text_is_repaired(content, tmp_path):
    content["samplers"]["ldm"]["model"]["optimizer"] = {"learning_rate": "1e-4"}
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(content))
    load(path)


def test_not_yaml_and_not_there(tmp_path):
    path = tmp_path / "params.yaml"
    with pytest.raises(ConfigError, match="not found"):
        load(path)
    path.write_text("a: [1")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load(path)
    path.write_text("just text")
    with pytest.raises(ConfigError, match="expected a mapping"):
        load(path)


def test_an_unknown_block_lists_the_blocks():
    with pytest.raises(ConfigError, match=r"samplers\.cgan"):
        train_block(load(ROOT / "params.yaml"), "samplers.nothing")


def test_the_environment_changes_where_and_nothing_else(monkeypatch):
    monkeypatch.setenv("LATENT_FOUNDRY_CLUSTER", "{address: auto, num_workers: [2, 8]}")
    changed = load(ROOT / "params.yaml")
    assert (changed.cluster.address, changed.cluster.num_workers) == ("auto", (2, 8))
    monkeypatch.delenv("LATENT_FOUNDRY_CLUSTER")
    plain = load(ROOT / "params.yaml")
    assert plain.cluster.address == "local"
    assert changed.model_dump(exclude={"cluster"}) == plain.model_dump(exclude={"cluster"})
    monkeypatch.setenv("LATENT_FOUNDRY_SAMPLERS", "{}")
    assert load(ROOT / "params.yaml") == plain


@pytest.mark.parametrize(
    ("value", "told"),
    [("auto", "LATENT_FOUNDRY_CLUSTER: expected {key: value}"), ("{adress: auto}", "cluster.adress: unknown key")],
)
def test_what_the_environment_says_is_checked(monkeypatch, value, told):
    monkeypatch.setenv("LATENT_FOUNDRY_CLUSTER", value)
    with pytest.raises(ConfigError, match=told):
        load(ROOT / "params.yaml")
