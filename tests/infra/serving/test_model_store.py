"""Which versions are served, from promoted.json and from the registry."""

import shutil
from pathlib import Path

import pytest

from components.artifacts import pyfunc, run_folder
from components.data.info import DataInfo
from components.errors import InputError, SamplerError
from components.families import family_class
from components.files import sha256_folder, write_json
from components.training.ema import copy_of
from components.training.loop import State
from infra.config import TrackingConfig
from infra.serving.model_store import Champions, ModelStore, folder_here
from infra.tracking.registry import Version
from tests.infra.serving_helpers import write_promoted, write_sampler

MODEL = "latent-foundry"
TRACKING = TrackingConfig()


@pytest.fixture
def root(tmp_path):
    write_sampler(tmp_path / "runs/a")
    return write_promoted(tmp_path, "runs/a", "1", settings={"num_inference_steps": 7})


def model_store(root, **fields) -> ModelStore:
    return ModelStore(root=str(root), **fields)


def test_promoted_files_are_copied_so_that_no_promotion_changes_them(root):
    champions = Champions(model_store(root))
    (first,) = champions.look()
    assert first.id == "latent-foundry@1" and first.settings == {"num_inference_steps": 7}
    assert "source" in first.accepts
    assert Path(first.folder).is_relative_to(root / ".cache/served")
    shutil.rmtree(root / "runs/a")
    write_sampler(root / "runs/a", seed=1)
    assert run_folder.load(Path(first.folder)).config == first.run
    write_promoted(root, "runs/a", "2")
    (second,) = champions.look()
    assert second.version == "2" and second.folder != first.folder
    weights = [(Path(model.folder) / "denoiser.safetensors").read_bytes() for model in (first, second)]
    assert weights[0] != weights[1]
    assert champions.look() == (second,) == champions.first()


def test_no_champion_at_all(tmp_path):
    with pytest.raises(SamplerError, match="promoted.json: missing"):
        Champions(model_store(tmp_path, tracking=TRACKING)).look()
    assert not (tmp_path / "mlflow.db").exists()  # looking creates no store


def test_versions_beside_need_a_registry(root):
    with pytest.raises(InputError, match=r"serve.versions: there is no registry"):
        Champions(model_store(root, versions=("1",))).look()


def test_what_generates_no_images_is_not_served(tmp_path):
    kind = family_class("judge")
    family = kind(kind.Config(width=8, feature_dim=4), DataInfo(shape=(1, 16, 16), classes=("a", "b")))
    average = copy_of(family.nets)
    provenance = run_folder.Provenance(data="data", code="code", job="job", seed=0, step=1)
    state = State(step=1, nets=average, optimizers={}, average=average)
    run_folder.write(tmp_path / "runs/judge", "judge", family, state, provenance)
    with pytest.raises(SamplerError, match="'judge' does not generate images"):
        Champions(model_store(write_promoted(tmp_path, "runs/judge", "1"))).look()


class FakeRegistry:
    """Versions as the registry keeps them (infra/tracking/registry.py), without MLflow."""

    reigns, fetched = "2", []

    def __init__(self, config, root, model):
        assert model == MODEL
        self.root = root

    def version(self, number):
        return Version(number, f"content {number}", "", "run", "path")

    def champion(self):
        return self.version(self.reigns)

    def fetch(self, version, target):
        self.fetched.append(version.number)
        shutil.copytree(write_sampler(self.root / "registered", int(version.number)), target / pyfunc.SAMPLER)
        write_json(target / pyfunc.CANDIDATE, {"settings": {"num_inference_steps": 9}, "figures": {"kid": 1.0}})


def test_the_registrys_champion_and_others_beside(root, monkeypatch):
    """The alias is followed wherever it was moved, and versions are fetched once, with their settings."""
    monkeypatch.setattr("infra.serving.model_store.Registry", FakeRegistry)
    (root / "mlflow.db").write_bytes(b"SQLite format 3\0")
    champions = Champions(model_store(root, tracking=TRACKING, versions=("1", "2")))
    assert [model.id for model in champions.first()] == ["latent-foundry@1"]  # what promoted.json says
    second, first = champions.look()
    assert (second.id, second.settings, second.figures) == (
        "latent-foundry@2",
        {"num_inference_steps": 9},
        {"kid": 1.0},
    )
    assert first.folder == champions.promoted().folder
    assert FakeRegistry.fetched == ["2"]  # the other is there already
    monkeypatch.setattr(FakeRegistry, "reigns", "1")
    assert [model.version for model in champions.look()] == ["1", "2"]
    assert FakeRegistry.fetched == ["2"]


def test_a_node_without_the_folder_fetches_its_own_copy(root, monkeypatch):
    monkeypatch.setattr("infra.serving.model_store.Registry", FakeRegistry)
    monkeypatch.setattr(FakeRegistry, "fetched", [])
    (root / "mlflow.db").write_bytes(b"SQLite format 3\0")
    kept = model_store(root, tracking=TRACKING)
    (model,) = Champions(kept).look()
    shutil.rmtree(Path(model.folder).parent)  # as a node with a disk of its own sees it
    assert folder_here(model, kept) == folder_here(model, kept) == Path(model.folder)
    assert run_folder.load(Path(model.folder)).family.data.classes
    assert FakeRegistry.fetched == ["2", "2"]  # once by the node that looked, once by the other
    shutil.rmtree(Path(model.folder).parent)
    with pytest.raises(InputError, match="not on this node, and there is no registry to fetch latent-foundry@2 from"):
        folder_here(model, model_store(root))


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [flipped, lambda path: path.write_bytes(b""), lambda path: path.unlink()])
def test_a_damaged_copy_is_made_again_before_it_is_served(root, damage):
    (model,) = Champions(model_store(root)).look()
    weights = Path(model.folder) / "denoiser.safetensors"
    whole = weights.read_bytes()
    damage(weights)
    assert folder_here(model, model_store(root)) == Path(model.folder) and weights.read_bytes() == whole
    damage(weights)
    Champions(model_store(root)).first()
    assert weights.read_bytes() == whole


def test_a_source_altered_since_it_was_promoted_is_refused(root):
    promoted = sha256_folder(root / "runs/a")
    write_promoted(root, "runs/a", "1", sha256=promoted)
    Champions(model_store(root)).look()
    shutil.rmtree(root / ".cache")
    flipped(root / "runs/a/denoiser.safetensors")
    with pytest.raises(SamplerError, match="runs/a: altered since it was promoted; `dvc checkout` brings it back"):
        Champions(model_store(root)).look()
    assert not [path for path in (root / ".cache/served").iterdir() if path.is_dir()]
