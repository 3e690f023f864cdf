"""What `evaluate` wrote, as promote and report read it: every sampler's figures, of one protocol."""

from __future__ import annotations

import json
from pathlib import Path

from components.config import parse
from components.errors import InputError
from components.evaluation.protocol import Protocol, ProtocolMismatch, refuse_unless_equal
from pipelines.support import paths
from pipelines.support.params import Params


def told(settings: dict) -> str:
    """A candidate's settings in a few words; what is not set is left out."""
    named = {name.removeprefix("num_").replace("_", " "): value for name, value in settings.items()}
    return ", ".join(f"{name} {value}" for name, value in named.items() if value is not None) or "nothing to set"


def read_json(path: Path, writer: str) -> dict:
    """Raises InputError if the file is missing or no JSON object; `writer` is the stage that writes it."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path}: missing; expected what `python -m pipelines.{writer}` writes") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a JSON object as `python -m pipelines.{writer}` writes it")
    return content


def read_metrics(params: Params) -> dict[str, dict]:
    """The metrics file of each sampler in params.yaml. Raises InputError if one is missing or of another protocol."""
    found = {}
    for name in params.samplers:
        path = paths.METRICS / f"{name}.json"
        found[name] = read_json(path, f"evaluate samplers.{name}")
    protocols = {
        name: parse(Protocol, metrics.get("protocol"), f"{paths.METRICS / name}.json.protocol")
        for name, metrics in found.items()
    }
    first, *others = protocols
    for other in others:
        try:
            refuse_unless_equal(protocols[first], protocols[other])
        except ProtocolMismatch as error:
            files = " and ".join(str(paths.METRICS / f"{name}.json") for name in (first, other))
            raise InputError(f"{files}: {error}") from None
    return found
