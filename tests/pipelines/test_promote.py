"""The policy, the registry and promoted.json."""

import json

import pytest

from components.errors import InputError
from infra.config import TrackingConfig
from infra.tracking import CHAMPION, CONTENT_TAG
from pipelines import promote as stage
from pipelines.params import PromoteConfig
from tests.infra.serving import write_sampler


def candidate(sampler="ldm", number=0, frechet=1.0, ms=10.0, agreement: float | None = 0.99) -> dict:
    return {
        "sampler": sampler,
        "number": number,
        "settings": {"num_inference_steps": number + 1},
        "frechet_distance": frechet,
        "ms_per_image": ms,
        "label_agreement": agreement,
    }


POLICY = PromoteConfig(max_ms_per_image=50, min_label_agreement=0.95)


def test_the_lowest_metric_wins():
    assert stage.choose([candidate(number=0, frechet=2), candidate(number=1, frechet=1)], POLICY)["number"] == 1


def test_too_slow_and_too_wrong_are_out():
    best = candidate(number=0, frechet=3)
    others = [candidate(number=1, frechet=1, ms=51), candidate(number=2, frechet=1, agreement=0.94)]
    assert stage.choose([*others, best], POLICY) == best


def test_a_sampler_without_classes_cannot_meet_a_bound_on_agreement():
    gan = candidate("dcgan", frechet=0.1, agreement=None)
    assert stage.choose([gan, candidate(frechet=2)], POLICY)["sampler"] == "ldm"
    assert stage.choose([gan, candidate(frechet=2)], PromoteConfig())["sampler"] == "dcgan"


def test_nobody_passes_tells_why_for_each():
    with pytest.raises(InputError, match=r"ldm #0: 60\.0 ms .*; dcgan #0: takes no class"):
        stage.choose([candidate(ms=60), candidate("dcgan", agreement=None)], POLICY)


@pytest.fixture()
def project(tmp_path, monkeypatch):
    """A project whose sampler is written and whose tracking store is its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stage, "ROOT", tmp_path)
    write_sampler(tmp_path / "runs/ldm")
    return tmp_path


class Project:
    tracking = TrackingConfig()
    promote = PromoteConfig(registered_model="digits")


def test_promoting_twice_registers_once_and_a_new_winner_moves_the_alias(project):
    from mlflow import MlflowClient

    first, is_new = stage.promote(Project, candidate(number=0))
    assert is_new
    again, is_new = stage.promote(Project, candidate(number=0))
    assert not is_new
    assert again == first
    other, is_new = stage.promote(Project, candidate(number=1))
    assert is_new
    assert other["version"] != first["version"]

    client = MlflowClient(f"sqlite:///{project}/mlflow.db")
    version = client.get_model_version_by_alias("digits", CHAMPION)
    assert version.version == int(other["version"]) or version.version == other["version"]
    assert version.tags[CONTENT_TAG] == other["hash"]
    artifacts = {
        file.path.split("/")[-1] for file in client.list_artifacts(version.run_id, f"sampler-{other['hash'][:12]}")
    }
    assert artifacts == {"config.json", "unet.safetensors", "autoencoder.safetensors", "history.csv"}
    assert json.loads(json.dumps(other))["run_folder"] == "runs/ldm"


def test_a_damaged_sampler_is_not_promoted(project):
    (project / "runs/ldm/unet.safetensors").unlink()
    with pytest.raises(InputError, match=r"unet\.safetensors: missing"):
        stage.promote(Project, candidate())
    assert not (project / "mlflow.db").exists()


def test_describe_names_champion_figures_and_report(tmp_path):
    promoted = {"sampler": "ldm", "settings": {"solver": "ddim"}, "model": "digits", "version": "3"}
    text = stage.describe({**promoted, "figures": {"frechet_distance": 1.23456}}, tmp_path / "report.html")
    assert "champion: ldm (solver ddim), registered as digits v3" in text
    assert "1.235" in text
    assert "not written yet" in text
