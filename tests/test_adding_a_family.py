"""docs/ADDING_A_FAMILY.md, followed to the letter in a copy of the project."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml

from tests.clones import ROOT, command, make_clone

GUIDE = ROOT / "docs" / "ADDING_A_FAMILY.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks() -> list[tuple[str, str]]:
    """Language and content of each fenced block, in order."""
    return BLOCK.findall(GUIDE.read_text())


def apply(folder: Path, language: str, content: str) -> None:
    """Does what a block says: its first line names the file."""
    first, _, rest = content.partition("\n")
    path = folder / first.removeprefix("# ")
    if language == "python":
        assert not path.exists(), f"{path.name}: the guide adds a file"
        path.write_text(rest)
        return
    lines, place = path.read_text().splitlines(), -1
    for line in rest.splitlines():
        sign, text = line[0], line[1:]
        if sign == "+":
            place += 1
            lines.insert(place, text)
            continue
        assert lines.count(text) == 1, f"{path.name}: the guide looks for one line {text!r}"
        place = lines.index(text)
        if sign == "-":
            del lines[place]
            place -= 1
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def followed(tmp_path_factory) -> Path:
    folder = make_clone(tmp_path_factory.mktemp("guide") / "clone", yaml.safe_load((ROOT / "params.yaml").read_text()))
    (folder / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    for language, content in blocks():
        if language in ("python", "diff"):
            apply(folder, language, content)
    return folder


def test_the_guide_is_one_file_and_one_block():
    assert [language for language, _ in blocks()] == ["python", "sh", "diff"]


def passed(folder: Path, *arguments: str) -> int:
    """Runs pytest in a clone; the number of tests that passed, none failing."""
    done = command(folder, sys.executable, "-m", "pytest", *arguments, "-p", "no:cacheprovider")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    return int(re.search(r"(\d+) passed", done.stdout)[1])


def test_the_commands_of_the_guide_pass(followed):
    (commands,) = (content for language, content in blocks() if language == "sh")
    for line in commands.splitlines():
        program, *arguments = shlex.split(line)
        assert (program, *arguments[:2]) == ("python", "-m", "pytest")
        assert passed(followed, *arguments[2:]) > 40, "contract and remedies"


@pytest.mark.skipif(
    "foreach: ${samplers}" not in (ROOT / "dvc.yaml").read_text(), reason="dvc.yaml lists the models itself"
)
def test_the_graph_knows_the_new_family(followed):
    """Those tests that read the project's own params.yaml and presets: what edits other params knows no new family."""
    assert passed(followed, "tests/pipelines/test_dvc.py", "-k", "not edit") >= 9
    assert passed(followed, "tests/pipelines/test_presets.py", "-k", "not slice")


def test_the_new_file_keeps_the_projects_style_and_layers(followed):
    for tool in (["-m", "ruff", "check", "."], ["-m", "ruff", "format", "--check", "."]):
        done = command(followed, sys.executable, *tool)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_remedies_of_the_table_are_keys_of_the_config():
    from components.gan.config import GANConfig

    rows = re.findall(r"^\| (`.*?) \|", GUIDE.read_text(), re.MULTILINE)
    keys = {key for row in rows for key in re.findall(r"`(\w+):", row)}
    settings = {"latent_dim", "lecam_decay"}
    assert keys | settings == set(GANConfig.model_fields)


def test_a_guide_that_no_longer_fits_is_noticed(tmp_path):
    (tmp_path / "x.yaml").write_text("a: 1\n")
    with pytest.raises(AssertionError, match="looks for one line 'b: 2'"):
        apply(tmp_path, "diff", "# x.yaml\n b: 2\n+c: 3\n")
    apply(tmp_path, "diff", "# x.yaml\n a: 1\n+c: 3\n")
    assert (tmp_path / "x.yaml").read_text() == "a: 1\nc: 3\n"
