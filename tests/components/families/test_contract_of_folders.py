"""What every family promises to whoever reads its run folder."""

from __future__ import annotations

import json
import pickle
import zipfile

import pytest
import safetensors.torch
import torch

from components.artifacts import run_folder
from components.errors import SamplerError
from components.families import family_names
from tests.components.families.contract import PROVENANCE, trained
from tests.components.helpers import assert_same, copied


@pytest.mark.parametrize("name", family_names())
def test_run_folder_holds_the_averaged_weights(name, folders):
    folder, family, state = folders[name]
    run = run_folder.load(folder)
    assert run.config.provenance == PROVENANCE
    assert run.family.config == family.config
    assert run.family.data == family.data
    for net in family.kept:
        expected = copied(family.nets[net]) if net in family.pretrained else state.average[net]
        assert_same(dict(run.family.nets[net].state_dict()), expected, net)
        if net not in family.pretrained:
            with pytest.raises(AssertionError):
                assert_same(expected, copied(family.nets[net]))
    assert not run.family.nets.training
    assert not any(parameter.requires_grad for parameter in run.family.nets.parameters())
    assert run_folder.read_history(folder) == [pytest.approx(report) for report in state.history]


@pytest.mark.parametrize("name", family_names())
def test_run_folder_holds_no_pickle(name, folders):
    folder, family, _ = folders[name]
    files = sorted(path.name for path in folder.rglob("*"))
    assert files == sorted(["config.json", "history.csv", *(f"{net}.safetensors" for net in family.kept)])
    for path in folder.iterdir():
        assert not zipfile.is_zipfile(path), "torch.save writes zip files"
        with path.open("rb") as file, pytest.raises(Exception, match=r".*"):
            pickle.load(file)


@pytest.mark.parametrize("name", family_names())
def test_writing_twice_gives_equal_bytes(name, folders, tmp_path):
    folder, family, state = folders[name]
    run_folder.write(tmp_path / "again", name, family, state, PROVENANCE)
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


@pytest.mark.parametrize("name", family_names())
def test_missing_file_is_named(name, copy):
    folder, family = copy(name)
    for file in ["config.json", *(f"{net}.safetensors" for net in family.kept)]:
        content = (folder / file).read_bytes()
        (folder / file).unlink()
        with pytest.raises(SamplerError, match=rf"{folder / file}: missing"):
            run_folder.load(folder)
        (folder / file).write_bytes(content)
    run_folder.load(folder)


@pytest.mark.parametrize("name", family_names())
def test_damaged_weights_are_named(name, copy):
    folder, family = copy(name)
    path = folder / f"{family.kept[0]}.safetensors"
    content, weights = path.read_bytes(), safetensors.torch.load_file(path)
    key = next(key for key in weights if key.endswith("weight"))
    path.write_bytes(content[:-8])
    with pytest.raises(SamplerError, match=f"^{path}: not this network's weights"):
        run_folder.load(folder)
    safetensors.torch.save_file({**weights, key: torch.zeros(3, 3, 3)}, path)
    with pytest.raises(SamplerError, match=f"^{path}: not this network's weights.*{key}"):
        run_folder.load(folder)
    weights.pop(key)
    safetensors.torch.save_file(weights, path)
    with pytest.raises(SamplerError, match=f"^{path}: not this network's weights.*{key}"):
        run_folder.load(folder)


BAD_CONFIGS = {
    "schema_version": (lambda content: {**content, "schema_version": 2}, "schema_version"),
    "unknown family": (
        lambda content: {**content, "family": "nope"},
        "family: expected one of .*, vae, .*'nope'",
    ),
    "unknown key": (lambda content: {**content, "extra": 1}, "extra"),
    "config of another family": (lambda content: {**content, "config": {"nope": 1}}, "nope"),
    "data it cannot take": (lambda content: {**content, "data": {**content["data"], "shape": [1, 15, 15]}}, "15"),
    "missing key": (lambda content: {key: content[key] for key in content if key != "data"}, "data"),
    "no mapping": (lambda content: [content], "expected a mapping"),
}


@pytest.mark.parametrize("change", BAD_CONFIGS)
def test_wrong_config_is_named(change, copy):
    folder, _ = copy("dcgan")
    path = folder / "config.json"
    alter, expected = BAD_CONFIGS[change]
    path.write_text(json.dumps(alter(json.loads(path.read_text()))))
    with pytest.raises(SamplerError, match=f"^{path}.*{expected}"):
        run_folder.load(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"null"])
def test_unreadable_config_is_named(content, copy):
    folder, _ = copy("judge")
    (folder / "config.json").write_bytes(content)
    with pytest.raises(SamplerError, match=f"^{folder / 'config.json'}: "):
        run_folder.load(folder)


def test_failed_write_leaves_the_old_folder(copy, monkeypatch):
    folder, family = copy("judge")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(run_folder, "write_json", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_folder.write(folder, "judge", family, trained("judge", steps=1)[1], PROVENANCE)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["judge"]
