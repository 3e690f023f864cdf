"""What the tests of every family share: a short training, and requests to samplers."""

from __future__ import annotations

import functools

import torch
from torch import nn

from components.artifacts.run_folder import Provenance
from components.families import family_class, family_names
from components.families.base import Family, Sampler
from components.sampling.engine import Engine, Forward
from components.sampling.requests import Conditions, Request
from components.training.loop import ActivePhase, State, TrainingConfig, fit
from tests.components.helpers import build, no_wrap, stream, tiny

SAMPLERS = [name for name in family_names() if issubclass(family_class(name), Sampler)]
CONFIG = TrainingConfig(steps=5, batch_size=6, report_every=2, save_every=3)
PROVENANCE = Provenance(data="d", code="c", job="j", seed=0, step=5)


class Counted(nn.Module):
    """Stands for a data-parallel wrapper: it only sees what goes through its forward. `outside`: modules that were
    called around it; `learning`: those of them whose gradients it would have had to share."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net, self.calls, self.inside, self.outside, self.learning = net, 0, False, [], []
        for name, module in net.named_modules():
            if not list(module.children()):
                module.register_forward_pre_hook(functools.partial(self.notice, name))

    def notice(self, name: str, module: nn.Module, args: tuple) -> None:
        if not self.inside:
            self.outside.append(name)
            if torch.is_grad_enabled():
                self.learning.append(name)

    def forward(self, *args, **kwargs):
        self.calls, self.inside = self.calls + 1, True
        answer = self.net(*args, **kwargs)
        self.inside = False
        return answer


def active_phase(family: Family, phase_name: str) -> ActivePhase:
    (phase,) = (phase for phase in family.phases if phase.name == phase_name)
    raw = family.nets[phase.net]
    return ActivePhase(phase, raw, Counted(raw), torch.optim.SGD(raw.parameters(), lr=0.1))


def stored(state: State, path) -> State:
    """Through a file and back, as a checkpoint is read: no pickled code."""
    torch.save(vars(state), path)
    return State(**torch.load(path, weights_only=True))


def trained(
    name: str, steps: int = CONFIG.steps, start: State | None = None, saved=None, **changes
) -> tuple[Family, State]:
    """`start` of None begins afresh; the initial weights of another seed show that a restart restores them all."""
    family = build(name, seed=0 if start is None else 1)
    state = fit(
        family,
        stream(name, start=start.step if start else 0),
        CONFIG.model_copy(update={"steps": steps, **changes}),
        start=start,
        wrap=no_wrap,
        report=lambda step, figures: figures,
        save=saved or (lambda state: None),
    )
    return family, state


def co_batched(sampler: Sampler, requests: list[Request]) -> tuple[list[torch.Tensor], list[Forward]]:
    """The images of each request, all advanced by one engine, and its forwards."""
    forwards: list[Forward] = []
    engine = Engine(sampler.calls, on_forward=forwards.append)
    futures = [engine.submit(lambda request=request: sampler.trajectory(request)) for request in requests]
    images = [future.result(60) for future in futures]
    engine.stop(timeout=60)
    return images, forwards


def request(sampler: Sampler, seeds: list[int], **settings) -> Request:
    labels = torch.tensor(seeds) % sampler.num_classes if sampler.conditional else None
    speakers = torch.tensor(seeds) // 2 % sampler.num_speakers if "speaker" in sampler.accepts else None
    return Request(torch.tensor(seeds), sampler.Settings(**settings), Conditions(label=labels, speaker=speakers))


def fast(name: str) -> dict:
    """Quick settings of a sampler, by its tiny configuration."""
    return dict(tiny(name).settings)
