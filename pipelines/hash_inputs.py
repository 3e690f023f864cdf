"""Writes what a model or a stage is made of besides its data, for its stage to depend on:

    python -m pipelines.hash_inputs samplers.ldm    -> inputs/ldm/block.json   its block, and what `inputs` gives it
    python -m pipelines.hash_inputs evaluate        -> inputs/evaluate/block.json
    python -m pipelines.hash_inputs ldm/guide       -> inputs/ldm/guide.txt    a hash of the run that `inputs` names

Reads params.yaml without checking more than it needs: it runs in a fraction of a second, before anything is trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from components.errors import ConfigError, DataError
from components.files import sha256, write_json, write_whole
from pipelines.support import cli, paths, yaml_files

NOT_TRAINED = ("candidates",)  # keys of a block that decide how a model samples, not what it becomes
PARAMS = Path("params.yaml")


def describe(content: dict[str, Any], key: str) -> dict[str, Any]:
    """The block that a key such as `samplers.ldm` or `evaluate` names, and its inputs by role."""
    block: Any = content
    for part in key.split("."):
        if not isinstance(block, dict) or part not in block:
            raise ConfigError(f"{PARAMS}: no block {key!r}")
        block = block[part]
    if isinstance(block, dict):
        block = {name: value for name, value in block.items() if name not in NOT_TRAINED}
    return {"block": block, "inputs": roles(content, key.rpartition(".")[2])}


def roles(content: dict[str, Any], name: str) -> dict[str, str]:
    """What `inputs` gives a model or stage, by role."""
    given = {key.partition("/"): path for key, path in (content.get("inputs") or {}).items()}
    return {role: path for (owner, _, role), path in given.items() if owner == name}


def listing(path: Path) -> str:
    """A line for each file that decides what a run is: its config and weights, or the only file. Raises DataError if
    there is neither."""
    if path.is_file():
        return f"{sha256(path)}  {path.name}\n"
    files = sorted([*path.glob("config.json"), *path.glob("*.safetensors")])
    if not files:
        raise DataError(f"{path}: expected a run folder with config.json and weights, or a file")
    return "".join(f"{sha256(file)}  {file.name}\n" for file in files)


def clear_others(folder: Path, kept: set[str]) -> None:
    """Takes away hashes of inputs that params.yaml names no more: the folder is a dependency as a whole."""
    for file in folder.glob("*.txt"):
        if file.stem not in kept:
            file.unlink()


def main(argv: list[str]) -> None:
    key = cli.one_argument(argv, "python -m pipelines.hash_inputs GROUP.NAME | NAME/ROLE")
    content = yaml_files.mapping(PARAMS)
    if "/" in key:
        if key not in (content.get("inputs") or {}):
            raise ConfigError(f"{PARAMS}: inputs: no {key!r}")
        target = paths.INPUTS / f"{key}.txt"
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, listing(Path(content["inputs"][key])))
        return
    described = describe(content, key)
    folder = paths.INPUTS / key.rpartition(".")[2]
    folder.mkdir(parents=True, exist_ok=True)
    clear_others(folder, set(described["inputs"]))
    write_json(folder / "block.json", described)


if __name__ == "__main__":
    cli.run(main)
