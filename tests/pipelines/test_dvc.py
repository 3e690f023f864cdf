"""dvc.yaml against params.yaml and the files: every key exists, every dependency is real, none is forgotten."""

import ast
from pathlib import Path

import pytest
import yaml
from dvc.repo import Repo

from components.families import family_class
from pipelines.support.params import TRAINED, load

ROOT = Path(__file__).resolve().parents[2]
# seen by every stage through the modules that it names, and without influence on what they compute
INCIDENTAL = {"components/__init__.py", "components/config.py", "components/errors.py", "components/files.py"}
# how trained models sample: evaluate's matter, a training only previews with it
SAMPLING_ONLY = {
    "components/sampling/requests.py",
    "components/sampling/trajectories.py",
    "components/data/media/base.py",
}
# figures beside the curves: they decide no weight
WATCHING_ONLY = {
    f"components/metrics/{name}.py"
    for name in ("figures", "modes", "neighbours", "probe", "reconstruction", "frechet", "intervals")
}


@pytest.fixture(scope="module")
def stages() -> dict:
    with Repo(str(ROOT)) as repo:
        return {stage.name: stage for stage in repo.index.stages}


@pytest.fixture(scope="module")
def params():
    return load(ROOT / "params.yaml")


def dependencies(stage) -> set[str]:
    return {Path(dep.fs_path).relative_to(ROOT).as_posix() for dep in stage.deps if hasattr(dep, "fs_path")}


def outputs(stages: dict) -> set[str]:
    return {Path(out.fs_path).relative_to(ROOT).as_posix() for stage in stages.values() for out in stage.outs}


def test_every_block_of_params_has_its_stage_and_every_stage_its_block(stages, params):
    blocks = {name for group in TRAINED for name in getattr(params, group)}
    assert {name.removeprefix("train@") for name in stages if name.startswith("train@")} == blocks
    evaluated = {name.removeprefix("evaluate@") for name in stages if name.startswith("evaluate@")}
    assert evaluated == set(params.samplers)
    measured = {name.removeprefix("reconstruct@") for name in stages if name.startswith("reconstruct@")}
    assert measured == set(params.autoencoders)


def test_every_parameter_of_every_stage_exists(stages):
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    for stage in stages.values():
        for dep in stage.deps:
            for key in getattr(dep, "params", []):
                value = content
                for part in key.split("."):
                    assert part in value, f"{stage.name}: {key} is not in params.yaml"
                    value = value[part]


def test_every_dependency_is_a_file_here_or_an_output_of_a_stage(stages):
    made = outputs(stages)
    for stage in stages.values():
        for path in dependencies(stage):
            is_made = any(path == out or out.startswith(f"{path}/") for out in made)
            assert is_made or (ROOT / path).exists(), f"{stage.name} depends on {path}, which nothing makes"


def test_where_things_run_is_no_stages_parameter(stages):
    for stage in stages.values():
        for dep in stage.deps:
            for key in getattr(dep, "params", []):
                assert key.split(".")[0] not in ("cluster", "tracking", "serve"), f"{stage.name}: {key}"


def test_no_stage_trains_on_the_test_split(stages, params):
    """It may be held against what is trained, where a block says so."""
    blocks = {name: block for group in TRAINED for name, block in getattr(params, group).items()}
    assert all(block.data != "data/images/test" for block in blocks.values())
    for name, stage in stages.items():
        if name.startswith("train@") or name == "encode":
            watch = getattr(blocks.get(name.removeprefix("train@")), "watch", None)
            assert ("data/images/test" in dependencies(stage)) == (watch is not None), name


def imported(path: Path, found: set[str]) -> set[str]:
    """The components modules that a module imports, directly or not."""
    for node in ast.walk(ast.parse(path.read_text())):
        modules = []
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("components"):
            modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for module in modules:
            file = ROOT / (module.replace(".", "/") + ".py")
            relative = file.relative_to(ROOT).as_posix()
            if file.is_file() and relative not in found:
                found.add(relative)
                imported(file, found)
    return found


def test_a_training_depends_on_all_the_code_that_decides_its_result(stages, params):
    for group in TRAINED:
        for name, block in getattr(params, group).items():
            module = family_class(block.family).__module__.replace(".", "/") + ".py"
            needed = imported(ROOT / module, {module}) | imported(ROOT / "components/training/loop.py", set())
            declared = dependencies(stages[f"train@{name}"])
            if block.data == "data/latents":  # the autoencoder comes with the latents, and with them its code
                declared |= dependencies(stages["encode"])
            covered = {path for path in needed if path in declared or any(path.startswith(f"{d}/") for d in declared)}
            missing = needed - covered - INCIDENTAL - SAMPLING_ONLY - WATCHING_ONLY
            assert not missing, f"train@{name} does not name {sorted(missing)}"


def test_editing_a_gan_does_not_retrain_the_autoencoder(stages):
    assert not any("gan" in path for path in dependencies(stages["train@vae"]))
