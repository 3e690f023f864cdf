"""Import closures: whole, narrow, and true to what a training runs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from components.families import family_names
from components.training.loop import TrainingConfig, fit
from pipelines.support import code_closure
from tests.components.helpers import build, no_wrap, stream

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def project(tmp_path):
    """A project of few modules."""

    def write(**modules: str) -> Path:
        for name, text in modules.items():
            path = tmp_path / (name.replace("__", "/") + ".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            for folder in path.relative_to(tmp_path).parents:
                (tmp_path / folder / "__init__.py").touch() if folder != Path() else None
        return tmp_path

    return write


def names(paths: list[Path]) -> set[str]:
    return {path.as_posix() for path in paths if path.name != "__init__.py"}


def test_a_closure_follows_every_form_of_import(project):
    root = project(
        components__a="import components.b as b\nfrom components import c\nimport os, json",
        components__b="def f():\n    from components.d import x\n    return x",
        components__c="from . import e\nfrom .f import y",
        components__d="x = 1",
        components__e="",
        components__f="y = 2",
        components__media__image="",
        components__media__rows="",
        components__media__registry="from importlib import import_module\nimport_module(f'components.media.{name}')",
        components__g="from components.media.registry import load",
        components__alone="",
    )
    found = code_closure.closure(["components.a"], root=root)
    assert names(found) == {f"components/{name}.py" for name in "abcdef"}
    assert Path("components/__init__.py") in found, "a package is imported before what it holds"
    assert names(code_closure.closure(["components.g"], root=root)) == {
        "components/g.py",
        *(f"components/media/{name}.py" for name in ("image", "registry", "rows")),
    }
    with pytest.raises(ValueError, match=r"components\.nothing: no module"):
        code_closure.closure(["components.nothing"], root=root)


def test_what_is_left_out_is_not_followed_either(project):
    root = project(
        components__a="from components.b import x", components__b="from components.c import x", components__c=""
    )
    assert names(code_closure.closure(["components.a"], ["components.b"], root)) == {"components/a.py"}


def test_every_rule_names_something():
    for name in (*code_closure.ALWAYS_LEFT_OUT, *code_closure.LEFT_OUT_OF_TRAINING):
        path = ROOT / name.replace(".", "/")
        assert path.is_dir() or path.with_suffix(".py").is_file(), f"{name} is left out and not there"


def test_families_are_those_of_the_registry():
    assert set(code_closure.family_names()) == set(family_names())


def test_a_family_depends_on_its_own_nets_and_not_on_anothers():
    vae, ldm, dcgan = (names(code_closure.of_training(name)) for name in ("vae", "latent_diffusion", "dcgan"))
    assert "components/families/vae.py" in vae - ldm, "latents come from an autoencoder that is named, not imported"
    assert not any("gan" in path for path in vae | ldm)
    assert not any("diffusion" in path or "autoencoder" in path for path in dcgan)
    for found in (vae, ldm, dcgan):
        assert {"components/training/loop.py", "components/families/base.py", "infra/ray_train/worker.py"} <= found


@pytest.mark.parametrize("name", family_names())
def test_a_training_runs_through_its_closure_and_nothing_else(name):
    """Every function of this project that is called in a training, batches included, lies in the closure, or is one of
    those that decide nothing."""
    family = build(name)
    called: set[str] = set()

    def note(frame, event, argument):
        if event == "call":
            called.add(frame.f_code.co_filename)

    batches = stream(name)
    training = TrainingConfig(steps=2, batch_size=4, report_every=1, save_every=2)
    functions = {"wrap": no_wrap, "report": lambda step, figures: figures, "save": lambda state: None}
    sys.setprofile(note)
    try:
        fit(family, batches, training, start=None, **functions)
    finally:
        sys.setprofile(None)
    ours = {Path(path).relative_to(ROOT) for path in called if path.startswith(f"{ROOT}/")}
    ours = {path for path in ours if path.parts[0] in code_closure.PACKAGES}
    closure = set(code_closure.of_training(name))
    always = {Path(rule.replace(".", "/")).with_suffix(".py") for rule in code_closure.ALWAYS_LEFT_OUT}
    assert not ours - closure - always, f"{name} trains through code that its closure leaves out"
