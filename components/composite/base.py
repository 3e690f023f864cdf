"""Composite samplers: a sampler whose parts are samplers, as a cascade or a prior and its decoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from torch import Tensor, nn

from components.config import Strict, parse
from components.data.info import RunInfo
from components.errors import ConfigError
from components.families import family_class, family_name
from components.families.base import Family, Phase, Sampler
from components.sampling.requests import Conditions, Request
from components.sampling.trajectories import Preview, Trajectory

T = TypeVar("T")


class Composite(Sampler):
    """Base of samplers made of samplers. A subclass's __init__ builds its parts and hands them to `adopt`; its
    `_trajectory` does `yield from self.part(...)` for each. Nets and calls have the part's name in front
    (`base_denoiser`), and so have their files in the run folder; `Settings` has a field for each part, a block of that
    part's Settings.

    A part's phases train it as they would train it alone, on the same rows. A part that comes trained has a kept input
    of its name: `trained_part` builds it, its nets are filled by that run and never trained, and it gives no phases.
    """

    parts: Mapping[str, Sampler]

    def adopt(self, **parts: Sampler) -> None:
        """Takes the parts' nets, calls and what is known of them as its own. Raises ConfigError of a part that wants
        rows of another size than the others."""
        for name, part in parts.items():
            if part.crops:
                raise ConfigError(f"{family_name(type(self))}: {name}.crops: all parts train on the same whole images")
        self.parts = parts
        self.nets = nn.ModuleDict(self._each({name: dict(part.nets.items()) for name, part in parts.items()}))
        self.calls = self._each({name: part.calls for name, part in parts.items()})
        self.kept = tuple(named(name, net) for name, part in parts.items() for net in part.kept)
        self.pretrained = tuple(
            named(name, net)
            for name, part in parts.items()
            for net in (part.kept if name in self.data.inputs else part.pretrained)
        )
        self.in_data = {
            named(name, net): part.in_data.get(net, net) for name, part in parts.items() for net in part.pretrained
        }
        self.libraries = tuple(dict.fromkeys(library for part in parts.values() for library in part.libraries))
        self.early = {
            named(name, net): early._replace(net=named(name, early.net))
            for name, part in parts.items()
            for net, early in part.early.items()
        }
        self.phases = ()

    def nets_of_input(self, role: str) -> tuple[str, ...]:
        return tuple(named(role, net) for net in self.parts[role].kept)

    def receive(self, role: str, given: Family | nn.Module) -> None:
        for net in self.parts[role].kept:
            self.nets[named(role, net)].load_state_dict(given.nets[net].state_dict())

    def phases_of(self, name: str) -> tuple[Phase, ...]:
        """A part's phases, by the names of the nets here. None makes ahead what others' losses find by its name."""
        found = self.parts[name].phases
        assert all(phase.ahead is None for phase in found), f"{name}: a phase's `ahead` is found by its own name"
        return tuple(replace(phase, name=named(name, phase.name), net=named(name, phase.net)) for phase in found)

    def part(self, name: str, request: Request, conditions: Conditions | None = None, shows: bool = True) -> Trajectory:
        """A part's trajectory for a request's seeds, under its own block of the settings; `conditions` in place of the
        request's. `shows`: whether its previews show what the whole makes. Raises SamplerError of what the part does
        not take."""
        own = Request(request.seeds, self._block(request.settings, name), conditions or request.conditions)
        return prefixed(name, self.parts[name].trajectory(own), shows)

    @staticmethod
    def _block(settings: Strict, name: str) -> Any:
        return getattr(settings, name)

    @staticmethod
    def _each(found: Mapping[str, Mapping[str, T]]) -> dict[str, T]:
        return {named(name, net): value for name, nets in found.items() for net, value in nets.items()}


def trained_part(run: RunInfo) -> Sampler:
    """A part as the run that `inputs` names for it was built; `receive` fills its nets."""
    kind = family_class(run.family)
    return kind(parse(kind.Config, run.config, "config"), run.data)


def named(part: str, name: str) -> str:
    """The name that a part's net, call or phase has in the composite."""
    return f"{part}_{name}"


def prefixed(part: str, trajectory: Trajectory, shows: bool) -> Trajectory:
    """A trajectory whose calls, and its previews', name the part's nets as the composite does."""

    def previewed(preview: Preview | None) -> Preview | None:
        if preview is None or not shows:
            return None
        return replace(preview, start=lambda: prefixed(part, preview.start(), shows))

    answer: Tensor | Mapping[str, Tensor] | None = None
    try:
        while True:
            call = trajectory.send(answer)
            answer = yield replace(call, net=named(part, call.net), preview=previewed(call.preview))
    except StopIteration as stop:
        return stop.value


def chosen(settings: Strict) -> Strict:
    """A part's settings of which none is said that equals its default: a block within a block is laid over the defaults
    and says them all."""
    return type(settings)(**settings.model_dump(exclude_defaults=True))
