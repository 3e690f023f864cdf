"""metrics/<name>.json: figures by name at the top, and all about them in `details`; beside it summary/<name>.json: the
few figures that `dvc metrics show` lists, a table that fits a terminal."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components import files
from components.config import parse
from components.errors import InputError
from components.evaluation.protocol import Protocol, ProtocolMismatch, refuse_unless_equal
from components.files import write_json
from components.metrics.figures import (
    Figures,
    as_json,
    definitions_as_json,
    from_json,
    values,
)
from pipelines.support import paths
from pipelines.support.candidates import Candidate, candidate_from_json, written_by
from pipelines.support.params import Params

# known sets of real images, by what samplers are asked for: every class as often, the captions' classes, nothing
FLOOR, FLOOR_OF_CAPTIONS, FLOOR_BY_CHANCE = "floor", "floor_of_captions", "floor_by_chance"


@dataclass(frozen=True)
class KnownSet:
    """A set of images whose quality is known, measured like samples."""

    name: str
    label: str
    explanation: str
    num_samples: int
    figures: Figures

    def as_json(self) -> dict[str, Any]:
        facts = {"name": self.name, "label": self.label, "explanation": self.explanation}
        return {**facts, "num_samples": self.num_samples, **as_json(self.figures)}


@dataclass(frozen=True)
class Known:
    """reference/known.json: figures of known sets, of the judge, and the protocol of all."""

    protocol: Protocol
    judge: Figures
    sets: tuple[KnownSet, ...]

    def as_json(self) -> dict[str, Any]:
        """Without definitions, which `definitions_as_json(known.collections)` gives."""
        return {
            "protocol": self.protocol.model_dump(mode="json"),
            "judge": as_json(self.judge),
            "known": [one.as_json() for one in self.sets],
        }

    def floor(self, name: str) -> KnownSet:
        """The real images under one kind of conditions; the first known set where there are none under these."""
        return next((one for one in self.sets if one.name == name), self.sets[0])

    @property
    def collections(self) -> list[Figures]:
        return [self.judge, *(one.figures for one in self.sets)]


@dataclass(frozen=True)
class SamplerMetrics:
    """What `evaluate` measured of one sampler. `best`: the number of the candidate with the best first figure;
    `search`: the trials of a search; `over_training`: figures at steps that averages were kept of; `floor_name`: the
    known set of real images under the same conditions."""

    sampler: str
    family: str
    conditional: bool
    device: str
    known: Known
    candidates: tuple[Candidate, ...]
    best: int
    search: tuple[dict, ...] = ()
    over_training: tuple[tuple[int, Figures], ...] = ()
    floor_name: str = FLOOR

    @property
    def floor(self) -> KnownSet:
        """Real images as many and of the same classes as this sampler's."""
        return self.known.floor(self.floor_name)

    @property
    def protocol(self) -> Protocol:
        return self.known.protocol

    def write(self) -> None:
        """metrics/<sampler>.json, whole or not at all."""
        grown = [{"step": step, **as_json(figures)} for step, figures in self.over_training]
        candidates = [one.figures for one in self.candidates]
        details = {
            "sampler": self.sampler,
            "family": self.family,
            "conditional": self.conditional,
            "device": self.device,
            "best": self.best,
            "floor_name": self.floor_name,
            "candidates": [one.as_json() for one in self.candidates],
            "search": list(self.search),
            "over_training": grown,
            **self.known.as_json(),
        }
        collections = [*candidates, *self.known.collections, *(figures for _, figures in self.over_training)]
        write_metrics(paths.METRICS / f"{self.sampler}.json", self.candidates[self.best].figures, details, collections)


def write_metrics(path: Path, figures: Figures, details: dict[str, Any], collections: list[Figures]) -> None:
    """One metrics file: the plain numbers, and the details with the definitions of `collections`; and its summary."""
    content = {**details, "definitions": definitions_as_json(collections)}
    write_json(path, {**values(figures), "details": [content]})
    shown = {name: figure for name, figure in figures.items() if figure.definition.summary}
    write_json(paths.SUMMARY / path.name, values(shown))


def read_json(path: Path, writer: str) -> dict:
    """Raises InputError if the file is missing or no JSON object; `writer` is the stage that writes it."""
    content = files.read_json(path, written_by(writer))
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a JSON object as `python -m pipelines.{writer}` writes it")
    return content


def read_details(path: Path, writer: str) -> dict:
    """The details of a metrics file. Raises InputError of a file that has none."""
    details = read_json(path, writer).get("details")
    if not isinstance(details, list) or len(details) != 1 or "definitions" not in details[0]:
        raise InputError(f"{path}: no details in it; run `python -m pipelines.{writer}` again")
    return details[0]


def known_from_json(content: dict[str, Any], where: str) -> Known:
    """What reference/known.json and every sampler's details hold."""
    protocol = parse(Protocol, content.get("protocol"), f"{where}.protocol")
    definitions = content["definitions"]
    sets = (
        KnownSet(
            **{name: one[name] for name in ("name", "label", "explanation", "num_samples")},
            figures=from_json(one, definitions, protocol.id, where),
        )
        for one in content["known"]
    )
    return Known(protocol, from_json(content["judge"], definitions, protocol.id, where), tuple(sets))


def read_known() -> Known:
    """Raises InputError if `reference` has not run here, or an older one."""
    content = read_json(paths.KNOWN, "reference")
    if "definitions" not in content:
        raise InputError(f"{paths.KNOWN}: of an older layout; run pipelines.reference again")
    return known_from_json(content, str(paths.KNOWN))


def read_sampler(name: str) -> SamplerMetrics:
    """The metrics file of one sampler. Raises InputError if it is missing or malformed."""
    path = paths.METRICS / f"{name}.json"
    content, where = read_details(path, f"evaluate samplers.{name}"), str(path)
    known, definitions = known_from_json(content, where), content["definitions"]
    candidates = (
        candidate_from_json(one, name, definitions, known.protocol.id, where, number=number)
        for number, one in enumerate(content["candidates"])
    )
    grown = (
        (point["step"], from_json(point, definitions, known.protocol.id, where)) for point in content["over_training"]
    )
    facts = {key: content[key] for key in ("sampler", "family", "conditional", "device", "best")}
    facts |= {key: content[key] for key in ("floor_name",) if key in content}
    return SamplerMetrics(
        **facts, known=known, candidates=tuple(candidates), search=tuple(content["search"]), over_training=tuple(grown)
    )


@dataclass(frozen=True)
class AutoencoderMetrics:
    """What `reconstruct` measured of one autoencoder on held-out images."""

    name: str
    num_images: int
    extractor: str
    extractor_hash: str
    figures: Figures

    def write(self) -> None:
        """metrics/<autoencoder>.json, whole or not at all."""
        details = {
            "autoencoder": self.name,
            "num_images": self.num_images,
            "extractor": self.extractor,
            "extractor_hash": self.extractor_hash,
            **as_json(self.figures),
        }
        write_metrics(paths.METRICS / f"{self.name}.json", self.figures, details, [self.figures])


def read_autoencoder(name: str) -> AutoencoderMetrics:
    """The metrics file of one autoencoder. Raises InputError if it is missing or malformed."""
    path = paths.METRICS / f"{name}.json"
    content = read_details(path, f"reconstruct autoencoders.{name}")
    facts = {key: content[key] for key in ("num_images", "extractor", "extractor_hash")}
    return AutoencoderMetrics(name, **facts, figures=from_json(content, content["definitions"], None, str(path)))


def read_metrics(params: Params) -> dict[str, SamplerMetrics]:
    """The metrics of each sampler in params.yaml. Raises InputError if one is missing or of another protocol."""
    found = {name: read_sampler(name) for name in params.samplers}
    first, *others = found
    for other in others:
        try:
            refuse_unless_equal(found[first].protocol, found[other].protocol)
        except ProtocolMismatch as error:
            files = " and ".join(str(paths.METRICS / f"{name}.json") for name in (first, other))
            raise InputError(f"{files}: {error}") from None
    return found
