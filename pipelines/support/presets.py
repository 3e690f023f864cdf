"""Presets: other things to compute, in the place of what params.yaml says."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

import yaml

from components.files import write_whole
from pipelines.support.params import WHERE, load

BEFORE = Path("params.before.yaml")  # what a preset replaced


def apply(preset: Path, target: Path, before: Path) -> Path | None:
    """Makes a preset what `target` computes, and keeps its blocks that say where, comments included. What it was goes
    to `before`, or to the next free number after it, so that no backup is lost; returns which, None if nothing changed.
    Raises ConfigError of a preset or target that is not valid."""
    load(preset)
    load(target)
    text, present = preset.read_text(), target.read_text()
    kept = [_block(present, name) for name in WHERE if name in yaml.safe_load(present)]
    kept = [block for name, block in kept if name not in yaml.safe_load(text)]
    if kept:
        text = text.rstrip() + "\n\n# Where to compute. Changing anything below reruns nothing.\n" + "\n".join(kept)
    if text == present:
        return None
    with tempfile.TemporaryDirectory() as folder:  # what is written is valid before anything is replaced
        made = Path(folder) / target.name
        made.write_text(text)
        load(made)
    numbered = (before.with_stem(f"{before.stem}.{number}") for number in itertools.count(2))
    free = next(path for path in itertools.chain([before], numbered) if not path.exists())
    write_whole(free, present)
    write_whole(target, text)
    return free


def _block(text: str, name: str) -> tuple[str, str]:
    """A top-level key of a YAML mapping, and its lines with the comments in them."""
    lines, entries = text.splitlines(), yaml.compose(text).value
    starts = [key.start_mark.line for key, _ in entries] + [len(lines)]
    place = [key.value for key, _ in entries].index(name)
    block = lines[starts[place] : starts[place + 1]]
    while block[-1].startswith("#") or not block[-1].strip():  # what is said above the next key
        block.pop()
    return name, "\n".join(block) + "\n"
