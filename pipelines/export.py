"""Models to and from other tools' formats: `python -m pipelines.export ldm --to diffusers out/` writes runs/ldm."""

from __future__ import annotations

import argparse
from pathlib import Path

from components import run_folder
from components.errors import SamplerError
from components.interchange import to_diffusers
from pipelines import cli, paths

FORMATS = {"diffusers": to_diffusers.export}


def export(name: str, form: str, target: Path) -> None:
    """Raises SamplerError if there is no such run, or if the format has no place for it."""
    folder = paths.RUNS / name
    if target.exists() and any(target.iterdir()):
        raise SamplerError(f"{target}: not empty; expected a folder that is not there yet")
    FORMATS[form](run_folder.load(folder), target)
    print(f"{folder} as {form}: {target}")


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser("python -m pipelines.export", description=__doc__.partition(":")[0])
    parser.add_argument("name", help="a run, as its block in params.yaml is called")
    parser.add_argument("--to", choices=FORMATS, required=True, help="the format")
    parser.add_argument("folder", type=Path, help="where to; must not be there yet")
    asked = parser.parse_args(argv)
    export(asked.name, asked.to, asked.folder)


if __name__ == "__main__":
    cli.run(main)
