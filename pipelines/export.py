"""Models to and from other tools' formats:

python -m pipelines.export ldm --to diffusers out/       runs/ldm as a folder that diffusers loads; likewise of
                                                         Stable Diffusion, imported or fine-tuned
python -m pipelines.export tuned --to lora out/          the adapters of runs/tuned as files of LoRA weights
python -m pipelines.export sd --from FOLDER              a diffusers folder of Stable Diffusion as runs/sd
"""

from __future__ import annotations

import argparse
from pathlib import Path

from components.artifacts import run_folder
from components.errors import ConfigError, SamplerError
from components.files import sha256, sha256_folder
from components.interchange import from_diffusers, lora, to_diffusers, to_stable_diffusion
from components.training.loop import State
from pipelines.support import cli, code_closure, paths


def _to_diffusers(run: run_folder.Run, target: Path) -> None:
    known = to_stable_diffusion if run.config.family == "stable_diffusion" else to_diffusers
    known.export(run, target)


FORMATS = {"diffusers": _to_diffusers, "lora": lora.export}


def export(name: str, form: str, target: Path) -> None:
    """Raises SamplerError if there is no such run, or if the format has no place for it."""
    folder = paths.RUNS / name
    _refuse_unless_new(target)
    FORMATS[form](run_folder.load(folder), target)
    print(f"{folder} as {form}: {target}")


def import_(name: str, source: Path, refiner: Path | None, adapters: dict[str, Path]) -> None:
    """Raises SamplerError of a folder that our nets cannot compute, or that holds a pickle."""
    target = paths.RUNS / name
    _refuse_unless_new(target)
    family = from_diffusers.read(source, refiner, adapters)
    folders = [folder for folder in (source, refiner) if folder is not None]
    content = "-".join(
        [sha256_folder(folder, "**/*.safetensors")[:32] for folder in folders]
        + [(sha256_folder(path, "*.safetensors") if path.is_dir() else sha256(path))[:32] for path in adapters.values()]
    )
    code = code_closure.code_hash(code_closure.of_training("stable_diffusion"))
    provenance = run_folder.Provenance(data=content, code=code, job=content, seed=0, step=0)
    average = {net: family.nets[net].state_dict() for net in family.kept if net not in family.pretrained}
    run_folder.write(target, "stable_diffusion", family, State(0, {}, {}, average), provenance)
    print(f"{' with '.join(map(str, [*folders, *adapters.values()]))}: {target}")


def _adapters(asked: list[str]) -> dict[str, Path]:
    """NAME=FILE of each. Raises ConfigError of what is none."""
    parts = [one.partition("=") for one in asked]
    for name, _, path in parts:
        if not (name and path):
            raise ConfigError(f"--adapter: expected NAME=FILE, found {name!r}")
    return {name: Path(path) for name, _, path in parts}


def _refuse_unless_new(target: Path) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise SamplerError(f"{target}: is there already; expected the name of a new folder")


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        "python -m pipelines.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="a run: its folder in runs/")
    parser.add_argument("--to", nargs=2, metavar=("FORMAT", "FOLDER"), help=f"write it as {', '.join(FORMATS)}")
    parser.add_argument("--from", dest="source", type=Path, metavar="FOLDER", help="make it from a folder of diffusers")
    parser.add_argument("--refiner", type=Path, metavar="FOLDER", help="with --from: XL's second stage")
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="with --from: LoRA weights to ask for by name",
    )
    asked = parser.parse_args(argv)
    if (asked.to is None) == (asked.source is None):
        parser.error("expected either --to or --from")
    if (asked.refiner is not None or asked.adapter) and asked.source is None:
        parser.error("--refiner and --adapter go with --from")
    if asked.to is None:
        return import_(asked.name, asked.source, asked.refiner, _adapters(asked.adapter))
    form, folder = asked.to
    if form not in FORMATS:
        parser.error(f"--to: expected {', '.join(FORMATS)}, found {form}")
    return export(asked.name, form, Path(folder))


if __name__ == "__main__":
    cli.run(main)
