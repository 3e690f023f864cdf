"""dvc.yaml against params.yaml and the files: the graph has one source, and sees everything that decides a result."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import yaml
from dvc.repo import Repo

from pipelines import hash_code, hash_inputs
from pipelines.support import code_closure
from pipelines.support.params import TRAINED, WHERE, Params, load
from tests.clones import command, make_clone, tiny_params

ROOT = Path(__file__).resolve().parents[2]
TRAINING_STAGES = tuple(group.removesuffix("s") for group in TRAINED)


def stages_of(folder: Path) -> dict:
    with Repo(str(folder)) as repo:
        return {stage.name: stage for stage in repo.index.stages}


@pytest.fixture(scope="module")
def stages() -> dict:
    return stages_of(ROOT)


@pytest.fixture(scope="module")
def params():
    return load(ROOT / "params.yaml")


def dependencies(stage, root: Path = ROOT) -> set[str]:
    return {Path(dep.fs_path).relative_to(root).as_posix() for dep in stage.deps if hasattr(dep, "fs_path")}


def outputs(stages: dict) -> set[str]:
    return {Path(out.fs_path).relative_to(ROOT).as_posix() for stage in stages.values() for out in stage.outs}


def params_of(stage) -> list[str]:
    return [key for dep in stage.deps for key in getattr(dep, "params", [])]


def test_dvc_yaml_names_no_model(params):
    """Groups of stages have names of their own; one of them is `judge`, as is the demo's judge."""
    text = (ROOT / "dvc.yaml").read_text().partition("\nstages:")[2]
    for name in {*params.models, *params.encode, *(block.family for block in params.models.values())} - {"judge"}:
        assert not re.search(rf"\b{name}\b", text), name
    assert not re.search(r"[/@.]judge\b", text.replace("inputs/judge", ""))


def test_every_block_of_params_has_its_stages_and_every_stage_its_block(stages, params):
    for group in (*TRAINED, "encode"):
        kind = group.removesuffix("s")
        for name in (kind, f"{kind}_block"):
            assert {stage.partition("@")[2] for stage in stages if stage.startswith(f"{name}@")} == set(
                getattr(params, group)
            )
    for kind, group in {"evaluate": "samplers", "reconstruct": "autoencoders"}.items():
        assert {stage.partition("@")[2] for stage in stages if stage.startswith(f"{kind}@")} == set(
            getattr(params, group)
        )
    assert {stage.partition("@")[2] for stage in stages if stage.startswith("input@")} == set(params.inputs)


def test_every_parameter_of_every_stage_exists(stages):
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    for stage in stages.values():
        for key in params_of(stage):
            value = content
            for part in key.split("."):
                assert part in value, f"{stage.name}: {key} is not in params.yaml"
                value = value[part]


def test_every_dependency_is_a_file_here_or_an_output_of_a_stage(stages):
    made = outputs(stages)
    for stage in stages.values():
        for path in dependencies(stage):
            is_made = any(path == out or out.startswith(f"{path}/") or path.startswith(f"{out}/") for out in made)
            assert is_made or (ROOT / path).exists(), f"{stage.name} depends on {path}, which nothing makes"


def test_every_hash_of_code_that_a_stage_depends_on_is_written(stages, tmp_path):
    hash_code.hash_code(tmp_path / "code_hashes")
    for stage in stages.values():
        for path in dependencies(stage):
            assert not path.startswith("code_hashes/") or (tmp_path / path).is_file(), f"{stage.name}: {path}"


def test_where_things_run_is_no_stages_parameter(stages):
    for stage in stages.values():
        for key in params_of(stage):
            assert key.split(".")[0] not in WHERE, f"{stage.name}: {key}"


def test_no_stage_trains_on_the_test_split(stages, params):
    """It may be held against what is trained."""
    assert all(block.data != "data/images/test" for block in params.models.values())
    for name, stage in stages.items():
        if name.startswith("encode@"):
            assert "data/images/test" not in dependencies(stage), name


def leaves(value, path=()):
    """Every key of nested mappings, by its path; lists are leaves."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from leaves(inner, (*path, name))
    else:
        yield path


def at(content, path):
    for part in path:
        content = content[part]
    return content


def test_every_field_of_every_block_is_seen_by_a_stage_or_says_where(stages, params):
    """With all defaults written out; what a training depends on is its block but for the candidates."""
    content = params.model_dump(mode="json")
    seen = {key for stage in stages.values() for key in params_of(stage)}
    for path in leaves(content):
        watched = any(path[: key.count(".") + 1] == tuple(key.split(".")) for key in seen)
        assert watched or path[0] in WHERE, f"{'.'.join(path)} changes no stage"
        if path[0] not in TRAINED:
            continue
        group, name, field = path[:3]
        changed = copy.deepcopy(content)
        at(changed, path[:-1])[path[-1]] = "something else"
        key = f"{group}.{name}"
        differs = hash_inputs.describe(content, key) != hash_inputs.describe(changed, key)
        assert differs == (field != "candidates"), f"{'.'.join(path)} and what {name} is trained from"
        assert f"inputs/{name}" in dependencies(stages[f"{group.removesuffix('s')}@{name}"])
        if field == "candidates":
            assert key in params_of(stages[f"evaluate@{name}"])
    assert set(WHERE) <= set(Params.model_fields)


def test_an_input_is_a_dependency_of_its_own_and_makes_the_order(stages, params):
    for key, path in params.inputs.items():
        assert dependencies(stages[f"input@{key}"]) == {path}
        assert outputs({"one": stages[f"input@{key}"]}) == {f"inputs/{key}.txt"}
    content = {"inputs": {"a/judge": "runs/one"}, "samplers": {"a": {"family": "dcgan"}, "b": {}}}
    before = hash_inputs.describe(content, "samplers.a")
    content["inputs"]["a/start"] = "runs/b"
    assert hash_inputs.describe(content, "samplers.a") != before
    assert hash_inputs.describe(content, "samplers.b")["inputs"] == {}


@pytest.fixture(scope="module")
def committed(tmp_path_factory) -> Path:
    """A project whose outputs are there, though nobody trained, and recorded in dvc.lock."""
    clone = make_clone(tmp_path_factory.mktemp("graph") / "clone", tiny_params())
    fill(clone)
    done = command(clone, "dvc", "commit", "--force")
    assert done.returncode == 0, done.stderr
    return clone


def fill(clone: Path) -> None:
    """Something at each output that is not there."""
    hash_code.hash_code(clone / "code_hashes", clone)
    for stage in stages_of(clone).values():
        for out in stage.outs:
            path = Path(out.fs_path)
            is_file = path.suffix in (".json", ".txt", ".html")
            if not path.exists():
                (path if is_file else path / "file").parent.mkdir(parents=True, exist_ok=True)
                (path if is_file else path / "file").write_text("{}")


def changed(clone: Path) -> set[str]:
    """The stages that `dvc status` tells of."""
    with Repo(str(clone)) as repo:
        return {stage.rpartition(":")[2] for stage in repo.status()}


@pytest.mark.timeout(300)
def test_an_edit_changes_what_imports_it_and_nothing_else(committed):
    assert changed(committed) == set()
    families = ("vae", "judge", "latent_diffusion", "dcgan", "wgan_gp")
    stages = ("autoencoder@vae", "judge@judge", "sampler@ldm", "sampler@dcgan", "sampler@wgan_gp")

    def hashes() -> dict[str, str]:
        return {name: code_closure.code_hash(code_closure.of_training(name, committed), committed) for name in families}

    edits = {  # one after the other, each of more than those before
        "components/sampling/engine.py": set(),
        "components/gan/losses.py": {"sampler@dcgan", "sampler@wgan_gp"},
        "components/training/loop.py": set(stages),
    }
    before, originals = hashes(), {file: (committed / file).read_text() for file in edits}
    for file, expected in edits.items():
        with (committed / file).open("a") as text:
            text.write("# edited\n")
        assert "code" in changed(committed), "dvc sees every edit"
        hash_code.hash_code(committed / "code_hashes", committed)
        assert {name for name in changed(committed) if name in stages} == expected, file
        after = hashes()
        resumable = {stage for stage, name in zip(stages, families, strict=True) if before[name] == after[name]}
        assert resumable == set(stages) - expected, "what dvc calls unchanged can resume"
    for file, text in originals.items():
        (committed / file).write_text(text)
    hash_code.hash_code(committed / "code_hashes", committed)
    assert changed(committed) == set()


@pytest.mark.timeout(300)
def test_one_edit_of_params_changes_the_graph(committed):
    """Adds, removes and renames models; plain dvc sees each at once."""
    original = (committed / "params.yaml").read_text()

    def graph(edit) -> set[str]:
        content = yaml.safe_load(original)
        edit(content)
        (committed / "params.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        load(committed / "params.yaml")
        return set(stages_of(committed)), changed(committed)

    before, _ = graph(lambda content: None)

    def add(content):
        content["samplers"]["big"] = {**content["samplers"]["dcgan"], "family": "stylegan2"}

    listed, stale = graph(add)
    assert (
        listed - before
        == {"sampler_block@big", "sampler@big", "evaluate@big"}
        == stale - {"models", "promote", "report"}
    )

    def remove(content):
        del content["samplers"]["wgan_gp"], content["inputs"]["wgan_gp/judge"]

    listed, stale = graph(remove)
    assert before - listed == {
        *(f"{kind}@wgan_gp" for kind in ("sampler_block", "sampler", "evaluate")),
        "input@wgan_gp/judge",
    }
    assert {"promote", "report"} <= stale and not {"sampler@ldm", "sampler@dcgan"} & stale

    def rename(content):
        content["samplers"]["diffusion"] = content["samplers"].pop("ldm")

    listed, _ = graph(rename)
    assert "sampler@diffusion" in listed and not any(stage.endswith("@ldm") for stage in listed)

    def second_autoencoder(content):
        content["autoencoders"]["wide"] = copy.deepcopy(content["autoencoders"]["vae"])
        content["encode"]["wide_latents"] = {"batch_size": 500}
        content["inputs"]["wide_latents/autoencoder"] = "runs/wide"
        content["samplers"]["wide_ldm"] = {**content["samplers"]["ldm"], "data": "data/wide_latents"}
        content["samplers"]["pixels"] = {**content["samplers"]["ldm"], "data": "data/images/train"}

    listed, stale = graph(second_autoencoder)
    assert {
        "autoencoder@wide",
        "encode@wide_latents",
        "reconstruct@wide",
        "sampler@wide_ldm",
        "sampler@pixels",
    } <= listed
    assert not {"autoencoder@vae", "encode@latents", "sampler@ldm", "prepare"} & stale

    def another_input(content):
        content["samplers"]["small"] = copy.deepcopy(content["samplers"]["ldm"])
        content["inputs"]["ldm/guide"] = "runs/small"

    listed, stale = graph(another_input)
    assert "input@ldm/guide" in listed
    (committed / "params.yaml").write_text(original)
    assert changed(committed) == set()

    graph(remove)
    mine = committed / "metrics/mine.txt"
    mine.write_text("a user's own")
    done = command(committed, "dvc", "repro", "models")
    assert "sampler@wgan_gp: removed from params.yaml" in done.stdout, done.stderr
    locked = yaml.safe_load((committed / "dvc.lock").read_text())["stages"]
    assert not [stage for stage in locked if "wgan_gp" in stage] and "sampler@dcgan" in locked
    for folder in ("metrics", "samples", "curves", "inputs"):
        assert not list((committed / folder).glob("wgan_gp*")), folder
        assert list((committed / folder).glob("dcgan*")), folder
    assert (committed / "runs/wgan_gp").is_dir() and mine.is_file()
    dry = command(committed, "python", "-m", "pipelines.repro", "--dry")
    assert dry.returncode == 0 and "python -m pipelines.promote" in dry.stdout, dry.stderr
