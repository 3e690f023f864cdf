"""Hashes the code behind each stage and family: `python -m pipelines.hash_code` -> code_hashes/.

    code_hashes/stages/encode.txt     a line a file of the stage's import closure: sha256 and name
    code_hashes/families/vae.txt      likewise of what a training of the family runs through

Stages depend on these files, so that an edit reruns what imports the edited file, and nothing else.
"""

from __future__ import annotations

from pathlib import Path

from components.files import whole_folder, write_whole
from pipelines.support import cli, code_closure, paths

STAGES = ("prepare", "encode", "reconstruct", "reference", "evaluate", "promote", "report")


def hash_code(target: Path, root: Path = paths.ROOT) -> None:
    """Writes the folder, whole or not at all."""
    closures = {f"stages/{verb}.txt": code_closure.of_stage(verb, root) for verb in STAGES}
    closures |= {
        f"families/{name}.txt": code_closure.of_training(name, root) for name in code_closure.family_names(root)
    }
    with whole_folder(target) as folder:
        for name, files in closures.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_whole(folder / name, code_closure.listing(files, root))


def main(argv: list[str]) -> None:
    cli.no_arguments(argv, "python -m pipelines.hash_code")
    hash_code(paths.CODE_HASHES)


if __name__ == "__main__":
    cli.run(main)
