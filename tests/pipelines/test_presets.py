"""Presets: each is valid and buildable, one command applies it, and the text preset runs on a slice of real emoji."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import pytest
import torch
import yaml
from dvc.dependency import ParamsDependency
from dvc.repo import Repo

from components.artifacts import run_folder
from components.data.dataset import read_manifest, write_manifest
from components.data.info import AutoencoderInfo, DataInfo, RunInfo
from components.errors import ConfigError
from components.families import family_class
from components.files import write_json
from components.metrics.figures import values
from components.sampling.requests import Conditions, Request
from infra.ray_cluster import encoding
from pipelines import evaluate, prepare, reference
from pipelines.support import inputs, paths
from pipelines.support.params import TRAINED, Params, load
from pipelines.support.presets import apply
from tests.benchmarks.paradigms import MODELS
from tests.pipelines.in_process import encoded, train_stage

ROOT = Path(__file__).resolve().parents[2]
PRESETS = sorted((ROOT / "presets").glob("*.yaml"))
EMOJI = ROOT.parent / "shared/data/noto-emoji-128.tar.xz"
SLICE = 48
LATENTS = Path("data/latents")


def kept(params: Params, name: str, sets: dict[str, DataInfo]) -> dict[str, RunInfo]:
    """The inputs that a model keeps."""
    found = {}
    for role, one in (inputs.roles(params, name) or {}).items():
        if one.kept and role in params.inputs_of(name):
            block = params.models[params.inputs_of(name)[role].name]
            config = family_class(block.family).Config(**block.model).model_dump(mode="json")
            found[role] = RunInfo(family=block.family, config=config, data=sets[block.data])
    return found


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_every_model_of_a_preset_fits_its_data(path):
    params = load(path)
    data, described = params.data, {"classes": ("a", "b", "c"), "caption_length": 60}
    of, shape = data.of()
    crops = () if data.crops is None else data.crops.sizes(shape[1:])
    images = DataInfo(shape=shape, medium=of.name, rate=of.rate, crops=crops, **described)
    sets = {"data/images/train": images}
    for name, options in params.encode.items():
        block = params.autoencoders[params.inputs_of(name)["autoencoder"].name]
        with torch.device("cpu" if options.tokens else "meta"):  # shapes alone
            vae = family_class(block.family)(family_class(block.family).Config(**block.model), images)
        of = AutoencoderInfo(family=block.family, config=block.model, data=images)
        ones = dict.fromkeys(("channel_mean", "channel_std"), (1.0,) * vae.latent_shape[0])
        made = {"shape": vae.latent_shape, "statistics": ones, "medium": images.medium, "rate": images.rate}
        if options.crops:
            cells = shape[1] // vae.latent_shape[1]
            made["crops"] = tuple((height // cells, width // cells) for height, width in crops)
        if options.tokens is not None:
            (tokens,) = vae.nets["autoencoder"].tokens(torch.zeros(1, *shape))
            made = {"shape": (1, *tokens.shape), "medium": "tokens"}
        sets[f"data/{name}"] = DataInfo(**made, autoencoder=of, **described)
    for group in TRAINED:
        for name, block in getattr(params, group).items():
            kind = family_class(block.family)
            data = sets[block.data].model_copy(update={"inputs": kept(params, name, sets)})
            with torch.device("meta"):
                family = kind(kind.Config(**inputs.whole_model(params, name)), data)
            received = {net for role in data.inputs for net in family.nets_of_input(role)}
            beside = {family.in_data.get(net, net) for net in family.pretrained if net not in received}
            assert beside <= ({"autoencoder"} if data.autoencoder else set()), "no file of `encode` has these weights"


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_dvc_finds_all_that_it_reads_in_a_preset(path, tmp_path):
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    shutil.copy(path, tmp_path / "params.yaml")
    with Repo.init(str(tmp_path), no_scm=True) as repo:
        stages = {stage.name: stage for stage in repo.index.stages}
        read = [dep for stage in stages.values() for dep in stage.deps if isinstance(dep, ParamsDependency)]
        assert read and not [missing for dep in read if (missing := set(dep.params) - dep.read_params().keys())]
    assert {f"sampler@{name}" for name in load(path).samplers} <= stages.keys()


@pytest.mark.parametrize(
    "name",
    ["seed", "data.path", "autoencoders", "judges", "encode", "samplers", "inputs", "evaluate", "promote"],
)
def test_what_dvc_would_miss_is_told_in_one_line(name, tmp_path):
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    block, _, key = name.partition(".")
    del (content[block] if key else content)[key or block]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    told = rf"params.yaml.{block}: {key} is missing" if key else rf"params.yaml.{name}: required key is missing"
    with pytest.raises(ConfigError, match=told):
        load(tmp_path / "params.yaml")


def test_a_preset_says_what_and_leaves_where(tmp_path):
    target, before = tmp_path / "params.yaml", tmp_path / "params.before.yaml"
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    content["cluster"]["num_workers"] = [1, 7]
    target.write_text(yaml.safe_dump(content))
    was = target.read_text()
    assert apply(PRESETS[0], target, before)
    applied, preset = load(target), load(PRESETS[0])
    assert applied.cluster.max_workers == 7
    assert applied.model_copy(update={"cluster": preset.cluster, "serve": preset.serve}) == preset
    assert before.read_text() == was
    assert not apply(PRESETS[0], target, before), "applied already"
    assert before.read_text() == was
    with pytest.raises(ConfigError, match="not found"):
        apply(tmp_path / "nothing.yaml", target, before)


def shrunk(content: dict) -> dict:
    """The preset's own keys at sizes that train in moments."""
    training = {"steps": 4, "batch_size": 8, "report_every": 2, "save_every": 4}
    for group in TRAINED:
        for block in content[group].values():
            block["training"] = training
    content["data"]["image_size"] = 16
    content["autoencoders"]["vae"]["model"] |= {"widths": [4, 8]}
    content["judges"]["judge"]["model"] = {"width": 8, "feature_dim": 8}
    ldm = content["samplers"]["ldm"]
    ldm["model"] |= {"backbone": {"widths": [8, 8], "context_dim": 8, "heads": 2}}
    ldm["model"]["text"] |= {"width": 8, "layers": 1, "heads": 2}
    ldm["training"] = {**training, "ema_snapshots": 8}
    for candidate in ldm["candidates"]:
        candidate["num_inference_steps"] = 2
    content["evaluate"] |= {"num_samples": 12, "batch_size": 6, "neighbours": 2, "resamples": 20, "real_draws": 2}
    return content


def unpack(folder: Path) -> None:
    """Every so many-th of the emoji, with their captions."""
    with tarfile.open(EMOJI, "r|xz") as archive:  # read once: going back would unpack from the start
        files = {Path(one.name).name: archive.extractfile(one).read() for one in archive if one.isfile()}
    lines = files["captions.jsonl"].decode().splitlines()
    lines = lines[:: len(lines) // SLICE][:SLICE]
    (folder / "images").mkdir(parents=True)
    for name in (json.loads(line)["file"] for line in lines):
        (folder / "images" / name).write_bytes(files[name])
    (folder / "captions.jsonl").write_text("\n".join(lines))


def encode(autoencoder: Path) -> None:
    """What the stage does, by one actor's work in this process."""
    LATENTS.mkdir(parents=True)
    shards, statistics = encoded(encoding.Work(autoencoder, paths.TRAIN_IMAGES, 16), LATENTS.absolute())
    run = run_folder.load(autoencoder)
    info = AutoencoderInfo(config=run.config.config, data=run.config.data)
    write_json(LATENTS / paths.AUTOENCODER_INFO, info.model_dump(mode="json"))
    (LATENTS / "autoencoder.safetensors").write_bytes((autoencoder / "autoencoder.safetensors").read_bytes())
    classes = read_manifest(paths.TRAIN_IMAGES).classes
    write_manifest(LATENTS, shards, value_range=(0, 255), classes=classes, statistics=statistics)


@pytest.mark.skipif(not EMOJI.is_file(), reason="../shared/data/noto-emoji is not here")
def test_a_slice_of_the_emoji_preset_from_files_to_figures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = shrunk(yaml.safe_load((ROOT / "presets/emoji_text.yaml").read_text()))
    Path("params.yaml").write_text(yaml.safe_dump(content))
    params = load(Path("params.yaml"))
    unpack(tmp_path / params.data.path)
    source = prepare.open_source(params.data, params.seed, prepare.CACHE)
    manifests = prepare.prepare(source, params.data, prepare.TARGET)
    assert sum(manifest.count for manifest in manifests.values()) == SLICE
    assert len(manifests["train"].classes) > 3 and "caption" in manifests["test"].columns
    for key in ("autoencoders.vae", "judges.judge"):
        train_stage(params, key)
    encode(paths.RUNS / "vae")
    train_stage(params, "samplers.ldm")

    sampler = run_folder.load(paths.RUNS / "ldm").family
    assert sampler.texts and not sampler.conditional
    settings = sampler.Settings(num_inference_steps=2)
    prompts = ("red heart", "waving hand")
    images = sampler.sample(
        Request(torch.tensor([1, 1]), settings, Conditions(prompt=prompts, negative_prompt=("", "blue")))
    )
    assert images.shape == (2, 3, 16, 16) and not torch.equal(images[0], images[1])

    reference.reference(params)
    result = evaluate.evaluate(params, "samplers.ldm", "cpu")
    first, second = (values(candidate.figures) for candidate in result.candidates)
    assert 0 <= first["label_agreement"] <= 1  # of the held-out captions' groups
    # two prompts' text, two steps with two rows, one decoder; with a guide heun asks three times, two nets each
    assert first["network_evaluations"] == 2 + 2 * 2 + 1
    assert second["network_evaluations"] == 2 + 3 * 2 + 1
    assert (paths.SAMPLES / "ldm/0-grid.png").is_file()


def test_the_preset_of_paradigms_trains_the_models_of_the_table():
    params = load(ROOT / "presets/paradigms.yaml")

    def shown(family: str, model: dict, batch_size: int, is_of_images: bool) -> tuple:
        config = family_class(family).Config(**model).model_dump()
        config.pop("stage_steps", None)  # of a student: as long as its training
        return family, config, batch_size, is_of_images

    table = [shown(one.family, one.model, one.batch_size, one.on == "pixels") for one in MODELS.values()]
    found = [
        shown(one.family, one.model, one.training.batch_size, one.data == "data/images/train")
        for one in params.samplers.values()
    ]
    assert len(found) == len(table) and all(one in table for one in found)


def test_the_way_back_and_every_backup_is_kept(tmp_path):
    target, before = tmp_path / "params.yaml", tmp_path / "params.before.yaml"
    shipped = (ROOT / "params.yaml").read_text().replace("  address: local\n", "  address: local # this machine\n")
    target.write_text(shipped)
    assert apply(PRESETS[0], target, before) == before and before.read_text() == shipped
    preset = target.read_text()
    assert "address: local # this machine" in preset and load(target).cluster.address == "local"
    assert apply(before, target, before) == tmp_path / "params.before.2.yaml"
    assert target.read_text() == before.read_text() == shipped
    assert (tmp_path / "params.before.2.yaml").read_text() == preset
    assert apply(before, target, before) is None


def test_a_file_that_says_nothing_of_where_stays_valid(tmp_path):
    target, before = tmp_path / "params.yaml", tmp_path / "params.before.yaml"
    target.write_text(PRESETS[0].read_text() + "# otherwise\n")
    apply(PRESETS[0], target, before)
    assert target.read_text() == PRESETS[0].read_text()
    load(target)
