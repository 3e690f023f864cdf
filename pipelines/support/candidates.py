"""Candidates: one sampler with one solver setting each, as measured, as files keep them, as people name them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from components.artifacts import pyfunc
from components.config import parse
from components.errors import DataError, InputError
from components.evaluation.protocol import Protocol
from components.files import read_json
from components.metrics.figures import Figures, as_json, from_json
from pipelines.support import paths


@dataclass(frozen=True)
class Candidate:
    """One sampler with one solver setting and what was measured of it. `number` is its place in the sampler's block,
    None of a registered version that is in no block; `content` is the hash of weights and settings, once it is known.
    `collapsed`, `withdrawn`, `unmeasurable`: why it must not reign, or empty."""

    sampler: str
    settings: dict[str, Any]
    figures: Figures
    number: int | None = None
    searched: bool = False  # its settings were found by search
    content: str = ""
    version: str = ""
    collapsed: str = ""
    withdrawn: str = ""
    unmeasurable: str = ""

    @property
    def name(self) -> str:
        """For people: `ldm #0`; of a registered version that is in no block, its version."""
        return f"v{self.version}" if self.number is None else f"{self.sampler} #{self.number}"

    def as_json(self) -> dict[str, Any]:
        """What a metrics file keeps; the figures' definitions stand apart."""
        facts = {"settings": self.settings, "searched": self.searched, "collapsed": self.collapsed}
        return {**facts, **as_json(self.figures)}


def candidate_from_json(
    stored: dict[str, Any], sampler: str, definitions: list[dict], protocol: str, where: str, **facts: Any
) -> Candidate:
    """A candidate as `Candidate.as_json` or the registry keeps it; `facts` are further fields. Raises ConfigError
    naming `where` of malformed definitions."""
    return Candidate(
        sampler=sampler,
        settings=stored["settings"],
        figures=from_json(stored, definitions, protocol, where),
        searched=stored.get("searched", False),
        collapsed=stored.get("collapsed", ""),
        **facts,
    )


def recorded_candidate(stored: dict[str, Any], where: str, **facts: Any) -> Candidate:
    """A candidate as the registry keeps it: with its own definitions and protocol. Raises InputError of one that was
    kept before figures had definitions."""
    if "definitions" not in stored:
        raise InputError(f"{where}: its figures have no definitions; `python -m pipelines.promote` measures it again")
    protocol = parse(Protocol, stored["protocol"], f"{where}.protocol")
    return candidate_from_json(stored, stored["sampler"], stored["definitions"], protocol.id, where, **facts)


def written_by(stage: str) -> str:
    """The cure for a file that is missing or damaged."""
    return f"; expected what `python -m pipelines.{stage}` writes"


def read_champion(**facts: Any) -> Candidate:
    """The candidate that promote put into champion/. Raises InputError if there is none, or an older one."""
    path = paths.CHAMPION / pyfunc.CANDIDATE
    return recorded_candidate(read_json(path, written_by("promote")), str(path), **facts)


def read_promotion() -> dict[str, Any]:
    """promoted.json. Raises DataError of one that is missing or damaged."""
    cure = written_by("promote")
    content = read_json(paths.PROMOTED, cure)
    if not isinstance(content, dict) or not {"version", "model"} <= content.keys():
        raise DataError(f"{paths.PROMOTED}: says no version{cure}")
    return content


def settings_text(settings: dict[str, Any]) -> str:
    """A candidate's settings in a few words; what is not set is left out."""
    named = {name.removeprefix("num_").replace("_", " "): value for name, value in settings.items()}
    return ", ".join(f"{name} {value}" for name, value in named.items() if value is not None) or "nothing to set"
