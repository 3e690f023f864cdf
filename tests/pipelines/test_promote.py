"""Promotion on a tiny measured project: who reigns, what is registered, rollback, and the record of it."""

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from mlflow import MlflowClient

from components.artifacts import run_folder
from components.errors import InputError, SamplerError
from components.files import write_json
from infra.serving.model_store import read_promoted
from infra.tracking.registry import CHAMPION, CONTENT_TAG, Registry
from infra.tracking.runs import Described, TrainingData, open_run
from pipelines import evaluate, promote, reference, report
from pipelines.support import measurement
from pipelines.support.candidates import Candidate, read_champion
from pipelines.support.metrics_files import read_metrics
from pipelines.support.params import load
from tests.pipelines.measured import PARAMS, write_run_with_averages

MODEL = "latent-foundry"


@pytest.fixture
def project(measured_project, tmp_path, monkeypatch):
    root = tmp_path / "project"
    shutil.copytree(measured_project, root)
    monkeypatch.chdir(root)
    monkeypatch.setattr(promote, "ROOT", root)
    set_distances(root, ldm=[2.0, 1.0], dcgan=[5.0])
    return root


def set_distances(root: Path, **distances: list[float]) -> None:
    """Makes the figures say what a test needs."""
    for sampler, values in distances.items():
        path = root / f"metrics/{sampler}.json"
        content = json.loads(path.read_text())
        for candidate, value in zip(content["details"][0]["candidates"], values, strict=True):
            candidate["figures"]["frechet_distance"] = value
            candidate["intervals"]["frechet_distance"] = [0.9 * value, 1.1 * value]
        write_json(path, content)


def client(root: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{root}/mlflow.db")


def run_promote() -> dict:
    promote.main([])
    return json.loads(Path("promoted.json").read_text())


def retrained(root: Path, sampler: str = "ldm") -> None:
    """Another training's weights in the place of a sampler's."""
    path = root / "runs" / sampler / "config.json"
    content = json.loads(path.read_text())
    content["provenance"]["seed"] = 77
    write_json(path, content)


def test_the_winner_is_registered_with_all_that_it_needs(project):
    open_run(
        load().tracking,
        project,
        Described("ldm-1", "latent_diffusion"),
        TrainingData("d", "d" * 40, 1, {"image": ("uint8", (1,))}),
    )
    promoted = run_promote()
    assert (promoted["sampler"], promoted["candidate"], promoted["version"]) == ("ldm", 1, "1")
    store = client(project)
    version = store.get_model_version_by_alias(MODEL, CHAMPION)
    assert version.tags[CONTENT_TAG] == promoted["hash"]
    assert json.loads(version.tags["settings"])["solver"] == "heun"
    told = json.loads((project / "champion/candidate.json").read_text())
    assert told["protocol"]["num_samples"] == 24
    assert told["figures"]["frechet_distance"] == 1.0
    assert told["lineage"]["runs"]["ldm"] == version.run_id  # that of its training
    assert {path.name for path in (project / "champion").iterdir()} == {
        "sampler", "candidate.json", "grid.png", "nearest.png", "failures.png",
    }  # fmt: skip
    served = read_promoted(project / "promoted.json")
    assert Path(served.folder) == project / "champion/sampler"
    logged = store.get_run(version.run_id)
    assert logged.data.metrics["candidate_0/frechet_distance"] == 2.0
    best = json.loads((project / "metrics/ldm.json").read_text())["details"][0]["best"]
    assert logged.data.metrics["frechet_distance"] == [2.0, 1.0][best]
    assert version.description.startswith("ldm #1 (")
    assert [file.path for file in store.list_artifacts(version.run_id, "samples")] == ["samples/0.png", "samples/1.png"]


def test_promoting_twice_registers_once(project, capsys):
    first, again = run_promote(), run_promote()
    assert first["version"] == again["version"] == "1"
    assert "v1 stays" in capsys.readouterr().out
    assert len(client(project).search_model_versions(f"name = '{MODEL}'")) == 1
    assert len(Registry(load().tracking, project, MODEL).moves()) == 1


def test_a_challenger_within_the_interval_does_not_replace_the_champion_and_one_below_does(project, capsys):
    run_promote()  # ldm #1 at 1.0, interval 0.9 to 1.1
    set_distances(project, ldm=[0.95, 1.0])
    assert run_promote()["candidate"] == 1
    assert "ldm #0 is the best challenger; its frechet_distance 0.95 is not below 0.9" in capsys.readouterr().out
    set_distances(project, ldm=[0.85, 1.0])
    promoted = run_promote()
    assert (promoted["candidate"], promoted["version"]) == (0, "2")
    *_, move = Registry(load().tracking, project, MODEL).moves()
    assert (move.left, move.to, move.made) == ("1", "2", True)
    assert "below 0.9" in move.why and "@" in move.who and move.when.endswith("+00:00")


def test_a_champion_of_an_earlier_training_is_measured_again_under_a_new_protocol(project, capsys):
    first = run_promote()
    retrained(project)
    set_distances(project, ldm=[9.0, 9.0])
    again = run_promote()  # the protocol is the one on record: nothing to measure
    assert "measuring it again" not in capsys.readouterr().out
    assert (again["version"], again["candidate"]) == (first["version"], None)
    assert again["figures"] == first["figures"]

    content = {**PARAMS, "evaluate": {**PARAMS["evaluate"], "num_samples": 20}}
    (project / "params.yaml").write_text(yaml.safe_dump(content))
    reference.main([])
    for sampler in ("ldm", "dcgan"):
        evaluate.main([f"samplers.{sampler}"])
    set_distances(project, ldm=[900.0, 900.0], dcgan=[900.0])
    anew = run_promote()
    assert "measuring it again" in capsys.readouterr().out
    assert anew["version"] == first["version"]
    assert anew["figures"]["frechet_distance"] not in (first["figures"]["frechet_distance"], 900.0)
    assert json.loads((project / "champion/candidate.json").read_text())["protocol"]["num_samples"] == 20


def test_a_champion_that_cannot_be_measured_any_more_falls(project, monkeypatch, capsys):
    run_promote()
    retrained(project)
    for measured in read_metrics(load()).values():
        replace(measured, device="another").write()

    def refuse(*_):
        raise InputError("other classes")

    monkeypatch.setattr(measurement, "load_sampler", refuse)
    set_distances(project, ldm=[9.0, 8.0], dcgan=[50.0])
    promoted = run_promote()
    assert (promoted["version"], promoted["candidate"]) == ("2", 1)
    assert "cannot be measured any more: other classes" in promoted["why"]


def test_rollback_is_recorded_and_holds_until_somebody_goes_back(project, capsys):
    run_promote()
    set_distances(project, ldm=[0.1, 1.0])
    assert run_promote()["version"] == "2"
    promote.main(["--to", "v1", "--why", "the sevens are ugly"])
    rolled = json.loads((project / "promoted.json").read_text())
    assert (rolled["version"], rolled["settings"]["solver"]) == ("1", "heun")
    assert Path(read_promoted(project / "promoted.json").folder).is_dir()
    assert run_promote()["version"] == "1"  # ldm #0 is better and withdrawn
    told = capsys.readouterr().out
    assert "ldm #0 is out: withdrawn by hand" in told and "the sevens are ugly" in told
    promote.main(["--moves"])
    assert "v2 -> v1" in capsys.readouterr().out
    promote.main(["--to", "2"])
    assert run_promote()["version"] == "2"


def test_a_version_that_does_not_exist_is_refused(project):
    run_promote()
    with pytest.raises(InputError, match="no version '9'; expected one of 1"):
        promote.main(["--to", "9"])


def test_a_moved_project_keeps_its_registry_and_a_copy_has_its_own(project, monkeypatch):
    run_promote()
    set_distances(project, ldm=[0.1, 1.0])
    assert run_promote()["version"] == "2"
    shutil.copytree(project, copied := project.parent / "copied")
    project.rename(moved := project.parent / "re named")
    for place in (moved, copied):
        monkeypatch.chdir(place)
        monkeypatch.setattr(promote, "ROOT", place)
        promote.main(["--to", "1"])
        assert json.loads((place / "promoted.json").read_text())["version"] == "1"
        store = client(place)
        found = store.get_model_version_by_alias(MODEL, CHAMPION)
        assert store.get_run(found.run_id).info.artifact_uri.startswith((place / "mlartifacts").as_uri())


def test_a_clone_without_a_registry_says_so_and_makes_none(project):
    run_promote()
    for name in ("mlflow.db", "mlartifacts"):
        (project / name).rename(project.parent / name)
    promote.main(["--show"])
    for arguments in (["--moves"], ["--to", "1"]):
        with pytest.raises(
            InputError, match=r"there is no .*mlflow\.db, so no registry here; copy it with mlartifacts/"
        ):
            promote.main(arguments)
    assert not (project / "mlflow.db").exists()
    (project.parent / "mlflow.db").rename(project / "mlflow.db")
    with pytest.raises(InputError, match="latent-foundry version 1: its files are not in file:///"):
        promote.main(["--to", "1"])


def test_a_damaged_sampler_is_not_promoted(project):
    (project / "runs/ldm/denoiser.safetensors").unlink()
    with pytest.raises(InputError, match=r"denoiser\.safetensors: missing"):
        promote.main([])
    assert Registry(load().tracking, project, MODEL).champion() is None
    assert not (project / "promoted.json").exists()


def test_a_champion_of_another_averaging_length_carries_those_weights(project):
    shutil.rmtree(project / "runs/ldm")
    write_run_with_averages(project / "runs/ldm")
    content = copy.deepcopy(PARAMS)
    content["samplers"]["ldm"]["training"]["ema_snapshots"] = 2
    content["samplers"]["ldm"]["candidates"].append({"num_inference_steps": 2, "ema_sigma_rel": 0.05})
    (project / "params.yaml").write_text(yaml.safe_dump(content))
    evaluate.main(["samplers.ldm"])
    set_distances(project, ldm=[2.0, 1.0, 0.5])
    promoted = run_promote()
    assert promoted["candidate"] == 2 and promoted["ema_sigma_rel"] == 0.05
    assert "ema_sigma_rel" not in promoted["settings"]  # the endpoint has no such setting: the weights are it
    wanted = run_folder.load(project / "runs/ldm", ema_sigma_rel=0.05).family.nets["denoiser"].state_dict()
    plain = run_folder.load(project / "runs/ldm").family.nets["denoiser"].state_dict()
    champion = run_folder.load(project / "champion/sampler").family.nets["denoiser"].state_dict()
    key = next(name for name, value in wanted.items() if value.ndim == 4)
    assert torch.equal(champion[key], wanted[key]) and not torch.equal(champion[key], plain[key])
    assert not (project / "champion/sampler" / run_folder.AVERAGES).exists()
    registry = Registry(load().tracking, project, MODEL)
    fetched = registry.fetch(registry.champion(), project / "fetched")
    assert torch.equal(run_folder.load(fetched / "sampler").family.nets["denoiser"].state_dict()[key], wanted[key])
    assert run_promote()["version"] == promoted["version"]


def test_show_names_champion_figures_and_report(project, capsys):
    run_promote()
    capsys.readouterr()
    promote.main(["--show"])
    told = capsys.readouterr().out
    assert "champion: ldm (" in told and "solver heun" in told and "registered as latent-foundry v1" in told
    assert "frechet_distance     1  (0.9 to 1.1)" in told
    assert "not written yet" in told and "registry:" not in told


@pytest.mark.parametrize("content", ["", "{", "{}", "[]"])
def test_a_damaged_record_of_who_reigns_is_told(project, content):
    run_promote()
    (project / "promoted.json").write_text(content)
    with pytest.raises(InputError, match=r"promoted\.json: .*; expected what `python -m pipelines\.promote` writes"):
        promote.main(["--show"])
    (project / "champion/candidate.json").write_text(content)
    with pytest.raises(InputError, match=r"candidate\.json"):
        read_champion()


@pytest.mark.parametrize("arguments", [["--to", ""], ["--why", "x"]])
def test_a_version_that_is_not_said_promotes_nothing(project, arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        promote.main(arguments)
    assert ended.value.code == 2 and "expected the number of a version" in capsys.readouterr().err
    assert not (project / "promoted.json").exists()


def test_show_tells_where_the_registry_and_promoted_json_differ(project, capsys):
    def shown() -> str:
        capsys.readouterr()
        promote.main(["--show"])
        return capsys.readouterr().out

    run_promote()
    before = (project / "promoted.json").read_text()
    set_distances(project, ldm=[0.5, 1.0])
    assert run_promote()["version"] == "2"
    assert "registry:" not in shown()
    (project / "promoted.json").write_text(before)  # as `git checkout` and `dvc checkout` bring an older one back
    assert "registry: v2 reigns there; `--to 2` writes promoted.json anew, `--to 1` makes v1 reign there" in shown()
    promote.main(["--to", "2"])
    assert "registry:" not in shown()
    (project / "mlflow.db").rename(project / "elsewhere.db")
    assert "registered as latent-foundry v2" in shown() and not (project / "mlflow.db").exists()


def test_the_weights_of_the_best_checkpoint_are_registered_where_a_candidate_asks_for_them(project):
    folder = project / "runs/ldm"
    nets = run_folder.load(folder).family.nets
    average = {"denoiser": {key: value + 1 for key, value in nets["denoiser"].state_dict().items()}}
    (folder / run_folder.BEST).write_bytes(run_folder.Best(1, "held_out_loss", 0.5, average).as_bytes())
    chosen = Candidate("ldm", {"num_inference_steps": 2, "checkpoint": "best"}, {}, number=0)
    copied = promote.copy_sampler(chosen, project / "copied")
    found = run_folder.load(copied).family.nets["denoiser"].state_dict()
    assert all(torch.equal(found[key], value) for key, value in average["denoiser"].items())
    assert not (copied / run_folder.BEST).exists()
    described = promote.described(load(), chosen, read_metrics(load())["ldm"])
    assert described["checkpoint"] == "best" and "checkpoint" not in described["settings"]


def test_where_nobody_passes_it_says_so_once_each_and_the_report_is_written(project, capsys):
    write_params(project, guards={"memorised": {"at_most": -1}})
    nobody = run_promote()
    told = capsys.readouterr().out
    assert told.count("ldm #0 is out: memorised") == told.count("dcgan #0 is out: memorised") == 1
    assert "nobody is promoted: no candidate passes the guards" in told
    assert nobody["version"] is None and nobody["guards"] == {"memorised": {"at_least": None, "at_most": -1.0}}
    assert nobody["objections"].keys() == {"ldm #0", "ldm #1", "dcgan #0"}
    assert Registry(load().tracking, project, MODEL).champion() is None
    promote.main(["--show"])
    assert "nobody reigns: no candidate passes" in capsys.readouterr().out
    with pytest.raises(SamplerError, match="nobody reigns: no candidate passes"):
        read_promoted(project / "promoted.json")
    report.main([])
    page = (project / "report.html").read_text()
    assert "<h1>latent-foundry: nobody passes</h1>" in page and page.count("<b>ldm #0</b>: memorised") == 1

    write_params(project)
    assert run_promote()["version"] == "1"
    write_params(project, guards={"memorised": {"at_most": -1}})
    stays = run_promote()
    assert stays["version"] == "1" and "ldm #1 stays until one does" in stays["why"]
    report.main([])
    assert "version 1: nobody passes" in (project / "report.html").read_text()


def write_params(root: Path, **changes) -> None:
    """params.yaml with other keys of `promote`."""
    content = {**PARAMS, "promote": {**PARAMS["promote"], **changes}}
    (root / "params.yaml").write_text(yaml.safe_dump(content))
