"""The registry against a real SQLite store: a version that loads anywhere, and a promotion that is killed anywhere."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest

from components.artifacts import pyfunc, run_folder
from components.data.media.image import MEDIUM
from components.errors import InputError
from components.evaluation.generation import open_candidate
from components.families import family_class
from components.sampling.requests import Conditions, Request
from infra.config import TrackingConfig
from infra.tracking.registry import Entry, Registry
from infra.tracking.shipped_model import renamed, requirements, write_package
from tests.infra.serving_helpers import write_sampler

MODEL = "digits"
SETTINGS = {"solver": "ddim", "num_inference_steps": 2, "guidance_scale": 1.5, "spacing": "schedule"}


def entry(folder: Path, content: str = "a" * 64) -> Entry:
    candidate = {"sampler": "ldm", "settings": SETTINGS, "figures": {"frechet_distance": 1.0}, "protocol": {}}
    return Entry(folder, content, "job", candidate, {"grid.png": b"png"}, {"sampler": "ldm"})


def promote(root: Path, folder: Path, content: str) -> str:
    registry = Registry(TrackingConfig(), root, MODEL)
    version, _ = registry.register(entry(folder, content))
    registry.move(version, "better")
    return version.number


@pytest.fixture(scope="module")
def registered(tmp_path_factory):
    root = tmp_path_factory.mktemp("registered")
    promote(root, write_sampler(root / "runs/ldm"), "a" * 64)
    return root


def test_a_version_names_the_libraries_that_its_networks_need():
    pytest.importorskip("transformers")
    plain, texts = (
        [line.partition("==")[0] for line in requirements(family_class(name))]
        for name in ("latent_diffusion", "stable_diffusion")
    )
    assert "torch" in plain and "transformers" not in plain
    assert texts == [*plain, "transformers"]


CLEAN = """
import json, logging, sys
import mlflow, numpy, pandas
import components
mlflow.set_tracking_uri(sys.argv[1])
first, second = (mlflow.pyfunc.load_model(f"models:/digits/{number}") for number in (1, 2))
rows = pandas.DataFrame({"seed": [3, 4], "label": [0, 2]})
images = first.predict(rows)
other = first.predict(rows, params={"num_inference_steps": 5})
some = first.predict(pandas.DataFrame({"seed": [3, 4], "label": [0, None]}))
unlabelled = first.predict(rows[["seed"]])
lines = []
handler = logging.Handler()
handler.emit = lambda record: lines.append(record.getMessage())
logging.getLogger("mlflow.models.utils").addHandler(handler)
first.predict(rows, params={"num_inferense_steps": 5})
refused = {}
for name, table, params in (
    ("empty", {"seed": []}, None),
    ("class", {"seed": [1], "label": [99]}, None),
    ("fraction", {"seed": [1], "label": [0.5]}, None),
    ("interval", {"seed": [1]}, {"guidance_interval": None}),
    ("steps", {"seed": [1]}, {"num_inference_steps": 0}),
):
    try:
        refused[name] = str(first.predict(pandas.DataFrame(table), params=params).shape)
    except Exception as error:
        refused[name] = str(error)
packages = {type(model._model_impl).__module__ for model in (first, second)}
print(json.dumps({
    "shape": images.shape, "pixels": images.tolist(), "application": components.NAME, "packages": sorted(packages),
    "other": bool((images != other).any()), "unlabelled": bool((images != unlabelled).any()),
    "some": bool((some[0] == images[0]).all() and (some[1] == unlabelled[1]).all()),
    "same": bool((second.predict(rows) == images).all()), "refused": refused, "unknown": lines,
    "modules": sorted({name.partition(".")[0] for name in sys.modules}),
    "ours": sorted(name for name in sys.modules if name.startswith("components.")),
    "signature": str(first.metadata.signature),
}))
"""


def test_versions_load_beside_each_other_in_an_application_with_components_of_its_own(tmp_path):
    root = tmp_path / "registered"
    for content in "ab":
        promote(root, write_sampler(root / "runs/ldm"), content * 64)
    (tmp_path / "components").mkdir()
    (tmp_path / "components/__init__.py").write_text("NAME = 'the application'")
    uri = f"sqlite:///{root}/mlflow.db"
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    done = subprocess.run(
        [sys.executable, "-c", CLEAN, uri], cwd=tmp_path, env=kept | quiet, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["shape"] == [2, 16, 16, 1]
    assert not {"ray", "infra", "pipelines", "dvc"} & set(told["modules"])
    assert told["application"] == "the application" and told["ours"] == []
    assert len(told["packages"]) == 2 and all(name.startswith("latent_foundry_") for name in told["packages"])
    assert told["other"] and told["unlabelled"] and told["some"] and told["same"]
    assert "uint8" in told["signature"] and "num_inference_steps" in told["signature"]
    refused = told["refused"]
    assert refused["empty"] == "seed: expected a row or more, each with a whole number"
    assert refused["fraction"] == "label: row 0: expected a whole number, found 0.5"
    assert "guidance_interval" in refused["interval"] and "num_inference_steps" in refused["steps"]
    assert all("\n" not in line for line in refused.values())
    (unknown,) = told["unknown"]  # MLflow's own line: it hands on what the signature has, and tells of the rest
    assert "['num_inferense_steps'] are ignored" in unknown and "guidance_scale" in unknown and "\n" not in unknown

    import torch

    sampler, settings = open_candidate(root / "runs/ldm", SETTINGS, "cpu", "")
    here = MEDIUM.to_stored(
        sampler.sample(Request(torch.tensor([3, 4]), settings, Conditions(label=torch.tensor([0, 2]))))
    )
    assert torch.equal(torch.tensor(told["pixels"], dtype=torch.uint8), here.permute(0, 2, 3, 1))


def test_no_module_of_a_shipped_package_names_the_package_that_it_came_from(tmp_path):
    write_package(tmp_path / "shipped_1")
    modules = sorted((tmp_path / "shipped_1").rglob("*.py"))
    assert len(modules) > 100
    mentions = re.compile(r"^ *(import|from) +components\b|[\"']components\.", re.MULTILINE)
    assert [path for path in modules if mentions.search(path.read_text())] == []
    assert "from shipped_1.errors import InputError" in (tmp_path / "shipped_1/artifacts/pyfunc.py").read_text()


def test_only_imports_and_names_of_modules_are_renamed():
    source = 'from components.a import b  # components\nimport components.c as c\nnames = ["é", "components.d"]\n'
    want = 'from x.a import b  # components\nimport x.c as c\nnames = ["é", "x.d"]\n'
    assert renamed(source, "components", "x") == want
    with pytest.raises(ValueError, match="line 1: expected `from components"):
        renamed("import components.a", "components", "x")


@pytest.mark.slow
def test_a_package_that_was_registered_before_packages_had_names_of_their_own_loads(registered, tmp_path):
    """Its code lies as components/ beside the weights, its loader is components.artifacts.pyfunc."""
    store = Registry(TrackingConfig(), registered, MODEL)
    version = store.version("1")
    with store._client() as found:
        model = Path(found.download_artifacts(version.run_id, version.path, str(tmp_path)))
    (package,) = (model / "code").iterdir()
    told = (model / "MLmodel").read_text().replace(package.name, "components")
    (model / "MLmodel").write_text(told)
    package.rename(model / "code/components")
    for path in (model / "code").rglob("*.py"):
        path.write_text(path.read_text().replace(package.name, "components"))
    script = "import mlflow, sys; print(mlflow.pyfunc.load_model(sys.argv[1]).predict({'seed': [1]}).shape)"
    done = subprocess.run(
        [sys.executable, "-c", script, str(model)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "(1, 16, 16, 1)" in done.stdout, done.stderr[-2000:]


def test_a_version_is_fetched_whole(registered, tmp_path):
    registry = Registry(TrackingConfig(), registered, MODEL)
    folder = registry.fetch(registry.champion(), tmp_path / "champion")
    assert (folder / "grid.png").read_bytes() == b"png"
    assert json.loads((folder / "candidate.json").read_text())["settings"] == SETTINGS
    run_folder.load(folder / "sampler")


def test_nobody_reigns_in_an_empty_store(tmp_path):
    registry = Registry(TrackingConfig(), tmp_path, MODEL)
    assert registry.champion() is None and registry.versions() == []


def test_a_store_that_is_replaced_is_read_anew(registered, tmp_path):
    """As when a backup of mlflow.db is restored under a server."""
    for name in ("mlflow.db", "backup.db"):
        shutil.copy(registered / "mlflow.db", tmp_path / name)
    with contextlib.closing(sqlite3.connect(tmp_path / "backup.db")) as backup, backup:
        backup.execute("DELETE FROM registered_model_aliases")
    registry = Registry(TrackingConfig(), tmp_path, MODEL)
    assert registry.champion().number == "1"
    os.replace(tmp_path / "backup.db", tmp_path / "mlflow.db")
    assert registry.champion() is None


def test_files_altered_in_the_registry_are_refused(registered, tmp_path):
    registry = Registry(TrackingConfig(), registered, MODEL)
    (weights,) = registered.glob("mlartifacts/**/denoiser.safetensors")
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        with pytest.raises(InputError, match="digits version 1: its files were altered since it was registered"):
            registry.fetch(registry.champion(), tmp_path / "champion")
    finally:
        weights.write_bytes(whole)


def in_child(work) -> int:
    """Runs work in a fork, which shares the imports and no connection to the store; returns its process id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = work() or 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


@pytest.mark.parametrize("seed", [0])
def test_killed_at_any_point_the_alias_points_at_a_version_that_loads(tmp_path, seed):
    import mlflow.pyfunc  # noqa: F401 - so that children need not

    folder = write_sampler(tmp_path / "runs/ldm")

    def check() -> int:
        registry = Registry(TrackingConfig(), tmp_path, MODEL)
        version = registry.champion()
        fetched = registry.fetch(version, tmp_path / f"fetched{os.getpid()}")
        pyfunc.RegisteredSampler(fetched).predict({"seed": [1], "label": [0]})
        return int(version.number)

    def finish(child: int) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    started = time.monotonic()
    assert finish(in_child(lambda: int(promote(tmp_path, folder, "0" * 64)) - 1)) == 0
    whole = time.monotonic() - started
    points, reigning, outcomes = random.Random(seed), 1, set()
    for trial in range(1, 9):
        child = in_child(lambda: int(promote(tmp_path, folder, str(trial) * 64)))  # noqa: B023 - runs in this turn
        time.sleep(points.uniform(0.3, 1.1) * whole * 0.9)
        os.kill(child, signal.SIGKILL)
        ended = finish(child)
        now = finish(in_child(check))
        assert now >= reigning, f"trial {trial}: the alias went from {reigning} to {now} (child {ended})"
        outcomes.add(now > reigning)
        reigning = now
    # whatever was left half-done, the next promotion ends well
    last = finish(in_child(lambda: int(promote(tmp_path, folder, "f" * 64))))
    assert finish(in_child(check)) == last > 0
