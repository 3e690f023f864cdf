"""WaveNet: sound sample by sample, each given those before it, class, speaker and how far the clip is (van den Oord et
al. 2016b). A clip's length is learnt along: before each sample stands how probably the clip has ended.

Samples are categorical over mu-law codes, within which stored values are taken to be uniform, or a discretised mixture
of logistics of the stored values themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from components.companding import CODES, codes_of, log_bin_sizes, values_of
from components.conditioning.classes import apart
from components.config import Strict
from components.data.dataset import Batch
from components.data.info import DataInfo
from components.data.media.audio import lengths
from components.data.randomness import Draws
from components.errors import SamplerError
from components.families.base import Losses, Phase, Sampler, Tiny
from components.likelihood import logistics
from components.likelihood.contract import Likelihood, bits_per_value
from components.likelihood.dequantise import levels
from components.metrics.held_out import BITS
from components.nets.wavenet import WaveNet
from components.sampling.requests import Request
from components.sampling.trajectories import Call, Preview, Trajectory
from components.training.optimizers import OptimizerConfig

_LEAST_LOG_SCALE = -11.0  # of logistics of 16-bit samples: a stored value is 2^-15 wide


class Config(Strict):
    samples: Literal["mu_law", "logistics"] = "mu_law"  # drawn as one of 256 values, or of a mixture over all
    mixtures: int = Field(8, ge=1)  # logistics of a sample
    width: int = Field(48, ge=1)  # of the residual stream
    skip: int = Field(96, ge=1)  # channels that each layer hands to the output
    depth: int = Field(9, ge=1)  # layers of a cycle, whose dilations double
    cycles: int = Field(2, ge=1)  # of layers, one after the other
    block: int = Field(128, ge=1)  # samples that are told the same place
    segment: int = Field(2048, ge=1)  # samples of a clip that a step learns from, beside what they depend on
    classes: bool = True  # whether samples depend on the class, where the data have some
    speakers: bool = True  # likewise on who speaks
    label_dropout: float = Field(0.1, ge=0, le=1)  # share of rows trained without class, and without speaker
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=2e-3, warmup=50, schedule="cosine")

    @model_validator(mode="after")
    def _fits(self) -> Config:
        if self.segment % self.block:
            raise ValueError(f"segment: expected whole blocks of {self.block} samples")
        return self


class Settings(Strict):
    temperature: float = Field(1.0, gt=0, le=2)  # of samples; lengths are drawn as they are


class SampleKind(NamedTuple):
    """How a sample is distributed by its `num_outputs` numbers and drawn by `num_uniform` of (0, 1).

    heard:            rows (B, 1, L) in [-1, 1] as the samples after them hear them
    log_probability:  numbers (B, L, num_outputs), rows (B, 1, L) -> (B, L) in nats
    draw:             numbers (B, num_outputs), uniform (B, num_uniform), temperature -> (B,) in [-1, 1]
    """

    num_outputs: int
    num_uniform: int
    heard: Callable[[Tensor], Tensor]
    log_probability: Callable[[Tensor, Tensor], Tensor]
    draw: Callable[[Tensor, Tensor, float], Tensor]


def mu_law(count: int) -> SampleKind:
    """Of `count` stored values in 256 codes."""

    def log_probability(numbers: Tensor, rows: Tensor) -> Tensor:
        codes = codes_of(rows[:, 0])
        found = -F.cross_entropy(numbers.transpose(1, 2), codes, reduction="none")
        return found - log_bin_sizes(codes, count)

    def draw(numbers: Tensor, uniform: Tensor, temperature: float) -> Tensor:
        shares = (numbers / temperature).softmax(1).cumsum(1)
        codes = (shares < uniform * shares[:, -1:]).sum(1)
        return values_of(codes.clamp(max=CODES - 1), count)

    return SampleKind(CODES, 1, lambda rows: values_of(codes_of(rows), count), log_probability, draw)


def mixture(count: int, mixtures: int) -> SampleKind:
    """Of `mixtures` logistics over `count` stored values."""

    def log_probability(numbers: Tensor, rows: Tensor) -> Tensor:
        return logistics.log_probabilities(numbers.transpose(1, 2), rows, count, mixtures, _LEAST_LOG_SCALE)

    def draw(numbers: Tensor, uniform: Tensor, temperature: float) -> Tensor:
        return logistics.draw(numbers, uniform, count, mixtures, temperature, _LEAST_LOG_SCALE)[:, 0]

    return SampleKind(logistics.num_outputs(1, mixtures), mixtures + 1, lambda rows: rows, log_probability, draw)


class Model(Sampler):
    Config = Config
    Settings = Settings
    kept = ("wavenet",)
    held_out = BITS
    streams = True

    def __init__(self, config: Config, data: DataInfo):
        self.config, self.data = config, data
        if data.medium != "audio" or data.autoencoder is not None:
            raise SamplerError(f"wavenet: expected clips of sound, found {self.medium.plural}")
        count = levels(self.medium)
        self.kind = mu_law(count) if config.samples == "mu_law" else mixture(count, config.mixtures)
        self.length = data.shape[1]
        # of each kind one more number stands for none
        known = {"label": data.classes if config.classes else (), "speaker": data.speakers if config.speakers else ()}
        self.steering = {name: len(names) for name, names in known.items() if names}
        net = WaveNet(
            self.kind.num_outputs + 1,
            config.width,
            config.skip,
            config.depth,
            config.cycles,
            [many + 1 for many in self.steering.values()],
            config.block,
            -(-self.length // config.block),
        )
        self.nets = nn.ModuleDict({"wavenet": net})
        self.calls = {"wavenet": net.next}
        self.phases = (Phase("likelihood", "wavenet", self.loss, config.optimizer),)

    @property
    def accepts(self) -> frozenset[str]:
        return frozenset(self.steering)

    # -- likelihood ---------------------------------------------------------------------------------------------------

    def loss(self, net: nn.Module, batch: Batch) -> Losses:
        """Nats a sample of one of the segments of each clip, times how many it has: a mean over all that clips could
        show. `bits`: of the samples that were looked at."""
        rows, draws, segment = self.medium.rows(batch.columns), batch.draws, self.config.segment
        counts = lengths(rows)
        segments = -(-(counts + 1).clamp(max=self.length) // segment)  # one sample more says that the clip ends
        chosen = torch.minimum((draws.uniform("segment") * segments).long(), segments - 1)
        known = {name: batch.columns[name] for name in self.steering}
        for name, many in self.steering.items():
            known[name] = known[name].masked_fill(draws.uniform(f"drop {name}") < self.config.label_dropout, many)
        block = self.config.block
        context = -(-self.nets["wavenet"].receptive_field // block)  # blocks
        first = chosen * (segment // block) - context
        positions = first[:, None] * block + torch.arange(context * block + segment, device=rows.device)
        heard = _at(self.kind.heard(rows)[:, 0], positions - 1)
        numbers = net(heard, self._ids(known, len(rows)), first)[:, -segment:]
        positions = positions[:, -segment:]
        found = self._each(numbers, _at(rows[:, 0], positions), positions, counts).sum(1)
        looked = (positions < counts[:, None]).sum(1).clamp(min=1)
        return {"loss": -(found * segments).mean() / segment, "bits": bits_per_value(found, looked).mean()}

    def _each(self, numbers: Tensor, values: Tensor, positions: Tensor, counts: Tensor) -> Tensor:
        """(B, T) log-probabilities of values (B, T) at `positions` (B, T) of clips of `counts` (B,) samples, and of the
        clips' ending there or not; 0 beyond the end."""
        kind, ended = numbers.tensor_split([self.kind.num_outputs], dim=2)
        clip = positions < counts[:, None]
        sample = self.kind.log_probability(kind, values[:, None])
        ended = ended[..., 0]
        goes_on = torch.where(positions > 0, F.logsigmoid(-ended), 0.0)  # a clip has one sample at least
        ends = torch.where((positions == counts[:, None]) & (positions < self.length), F.logsigmoid(ended), 0.0)
        return torch.where(clip, sample + goes_on, ends)

    def _ids(self, known: dict[str, Tensor | None], count: int) -> Tensor:
        """(B, K) numbers of what steers rows; the last of a kind where nothing is told."""
        device = next(self.nets.parameters()).device
        columns = [
            torch.full((count,), many, device=device) if known.get(name) is None else known[name]
            for name, many in self.steering.items()
        ]
        return torch.stack(columns, 1) if columns else torch.zeros(count, 0, dtype=torch.int64, device=device)

    @property
    def likelihood(self) -> Likelihood:
        """A bound: clips of one more zero at their end are stored alike, and only the shortest is counted."""
        return Likelihood("bound", "none", self._log_probability, num_values=self.medium.num_values)

    def _log_probability(self, rows: Tensor, label: Tensor | None, draws: Draws) -> Tensor:
        ids = self._ids(dict(zip(("label", "speaker"), apart(label), strict=True)), len(rows))
        positions = torch.arange(self.length, device=rows.device).expand(len(rows), -1)
        numbers = self.nets["wavenet"](_at(self.kind.heard(rows)[:, 0], positions - 1), ids)
        return self._each(numbers, rows[:, 0], positions, lengths(rows)).double().sum(1)

    # -- sampling -----------------------------------------------------------------------------------------------------

    def _trajectory(self, request: Request) -> Trajectory:
        """Sample by sample, until every clip has ended."""
        draws, count = Draws.of_seeds(request.seeds), len(request.seeds)
        ids = self._ids({name: getattr(request.conditions, name) for name in self.steering}, count)
        rows = torch.zeros(count, self.length, device=request.seeds.device)
        ended = torch.zeros(count, dtype=torch.bool, device=request.seeds.device)
        block, before = self.config.block, rows.new_zeros(count)
        for place in range(self.length):
            if place % block == 0:
                uniform = draws.uniform(f"samples {place // block}", (block, 1 + self.kind.num_uniform))
            inputs = {"position": torch.full_like(request.seeds, place), "before": before, "ids": ids}
            shown = Preview(place / self.length, self._so_far(rows, place)) if place and place % block == 0 else None
            numbers = yield Call("wavenet", inputs, shown, stateful=True)
            now = uniform[:, place % block]
            if place:
                ended = ended | (now[:, 0] < numbers[:, -1].sigmoid())
            if ended.all():
                break
            before = self.kind.draw(numbers[:, :-1], now[:, 1:], request.settings.temperature)
            before = before.masked_fill(ended, 0.0)
            rows[:, place] = before
        return rows[:, None]

    def _so_far(self, rows: Tensor, place: int) -> Callable[[], Trajectory]:
        """The first `place` samples, silence beyond."""

        def start() -> Trajectory:
            so_far = rows.clone()
            so_far[:, place:] = 0
            return so_far[:, None]
            yield

        return start


def _at(rows: Tensor, places: Tensor) -> Tensor:
    """Values of rows (B, L) at places (B, T), 0 where there are none."""
    found = rows.gather(1, places.clamp(0, rows.shape[1] - 1))
    return found.masked_fill((places < 0) | (places >= rows.shape[1]), 0.0)


TINY = Tiny(
    {"width": 6, "skip": 8, "depth": 3, "cycles": 2, "block": 8, "segment": 16},
    data=DataInfo(shape=(1, 24), medium="audio", rate=8000, classes=("nought", "one", "two"), speakers=("ann", "bob")),
)
