"""Damaged params.yaml and dvc.lock end in one line that names the file."""

import pytest

from components.errors import ConfigError
from pipelines.support import yaml_files

DAMAGED = {
    "not UTF-8": b"seed: \xff",
    "not valid YAML": b"seed: [1",
    "expected a mapping": b"- 1",
    "found NoneType": b"",
}


@pytest.mark.parametrize("told", DAMAGED)
def test_what_is_no_mapping_is_told(tmp_path, told):
    path = tmp_path / "params.yaml"
    path.write_bytes(DAMAGED[told])
    with pytest.raises(ConfigError, match=told) as caught:
        yaml_files.mapping(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_and_nothing_at_all_are_told(tmp_path):
    with pytest.raises(ConfigError, match="a folder; expected a file"):
        yaml_files.read(tmp_path)
    with pytest.raises(ConfigError, match="not found; run from the project's root"):
        yaml_files.read(tmp_path / "params.yaml")


def test_a_lock_that_is_not_there_has_no_stages_and_a_damaged_one_its_cure(tmp_path):
    path = tmp_path / "dvc.lock"
    assert yaml_files.locked_stages(path) == {}
    for content in ("", "[]", "stages: 3", "a: [", "stages: [1]"):
        path.write_text(content)
        with pytest.raises(ConfigError, match="without the file `dvc repro` writes it anew"):
            yaml_files.locked_stages(path)
    path.write_text("schema: '2.0'\nstages: {code: {cmd: x}}\n")
    assert yaml_files.locked_stages(path) == {"code": {"cmd": "x"}}
