"""Tells what params.yaml may say: `python -m pipelines.params` prints a table of all keys, in Markdown.

python -m pipelines.params --explain KEY    one key: samplers.ldm.model.backbone.widths, training.steps, kl_weight
"""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterator
from typing import Any

from components.config import models_in
from components.errors import ConfigError
from components.families import family_class
from components.families.base import Sampler
from components.training.optimizers import OptimizerConfig
from pipelines.support import cli, yaml_files
from pipelines.support.keys import Key, default_of, keys_of, sections
from pipelines.support.params import DEFAULT, TRAINED, SamplerBlock


def table() -> str:
    """All keys, a table a block, in Markdown."""
    lines = [
        "# Keys of params.yaml",
        "",
        "NAME stands for a name of your own; [unet] and the like for a choice of blocks.",
    ]
    for section in sections():
        lines += ["", f"## {section.title}", ""]
        lines += [section.about, ""] if section.about else []
        lines += ["| key | values | default | meaning |", "|---|---|---|---|"]
        for key in section.keys:
            cells = (f"`{key.path}`", key.kind, f"`{key.default}`", key.meaning)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def explain(asked: str, content: Any) -> str:
    """What a key means, by its whole path or the end of it. `content`: params.yaml as it is, for the values there.
    Raises ConfigError naming the nearest of a key that there is not."""
    family = family_of(asked, content)
    pattern = plain(asked)
    found = list(of_block(asked, family)) if family else [key for section in sections() for key in section.keys]
    matching = [key for key in found if _matches(plain(key.path), pattern)]
    if not matching:
        length = len(pattern.split("."))
        ends = {".".join(plain(key.path).split(".")[-length:]) for key in found}
        near = difflib.get_close_matches(pattern, sorted(ends), 1)
        raise ConfigError(f"{asked}: no such key{f'; the nearest is {near[0]}' if near else ''}")
    here = value_at(content, asked)
    told: dict[tuple[str, str, str], list[str]] = {}
    for key in matching:
        told.setdefault((key.kind, key.default, key.meaning), []).append(key.path)
    blocks = [
        "\n".join([", ".join(dict.fromkeys(paths)), f"  {meaning}", f"  {kind}; default: {default}"])
        for (kind, default, meaning), paths in told.items()
    ]
    return "\n".join([*blocks, *([] if here is None else [f"  in {DEFAULT}: {here}"])])


def family_of(asked: str, content: Any) -> str | None:
    """The family of the block that a key begins with, such as samplers.ldm; None of another key."""
    group, _, rest = asked.partition(".")
    block = value_at(content, f"{group}.{rest.partition('.')[0]}") if group in TRAINED and rest else None
    return block.get("family") if isinstance(block, dict) else None


def of_block(asked: str, family: str) -> Iterator[Key]:
    """The keys of a block of params.yaml, its family's among them, by their whole paths."""
    prefix, kind = ".".join(asked.split(".")[:2]), family_class(family)
    yield from keys_of(SamplerBlock, prefix)
    yield from keys_of(kind.Config, f"{prefix}.model")
    for name, field in kind.Config.model_fields.items():
        if OptimizerConfig in models_in(field.annotation):
            yield from keys_of(OptimizerConfig, f"{prefix}.model.{name}", default_of(field, OptimizerConfig))
    if issubclass(kind, Sampler):
        yield from keys_of(kind.Settings, f"{prefix}.candidates")


def plain(path: str) -> str:
    """A path without numbers of lists and choices of blocks."""
    return ".".join(part for part in re.sub(r"\[\w+\]", "", path).split(".") if part and not part.isdecimal())


def _matches(path: str, asked: str) -> bool:
    """Whether a path, in which NAME is any name, is what is asked or ends so."""
    ours, theirs = path.split("."), asked.split(".")
    ends = ours[len(ours) - len(theirs) :] if len(theirs) <= len(ours) else None
    if ends is None:
        return False
    whole = len(ours) == len(theirs)
    names = ["NAME" if whole or place < len(ends) - 1 else None for place in range(len(ends))]
    return all(one in (other, name) for one, other, name in zip(ends, theirs, names, strict=True))


def value_at(content: Any, path: str) -> Any:
    """What params.yaml says at a path; None where it says nothing."""
    for part in path.split("."):
        if isinstance(content, list) and part.isdecimal() and int(part) < len(content):
            content = content[int(part)]
        elif isinstance(content, dict) and part in content:
            content = content[part]
        else:
            return None
    return content


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser("python -m pipelines.params", description=__doc__.partition(":")[0])
    parser.add_argument("--explain", metavar="KEY", help="one key, by its path or the end of it")
    asked = parser.parse_args(argv).explain
    if asked is None:
        print(table())
        return
    content = yaml_files.mapping(DEFAULT) if DEFAULT.exists() else {}
    print(explain(asked, content))


if __name__ == "__main__":
    cli.run(main)
