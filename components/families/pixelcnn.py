"""PixelCNN++: pixels in reading order, each a discretised mixture of logistics given those before (Salimans et al.
2017)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pydantic import Field
from torch import Tensor, nn

from components.config import Strict
from components.data.dataset import Batch
from components.data.info import DataInfo
from components.data.randomness import Draws
from components.families.base import Losses, Phase, Sampler, Tiny
from components.likelihood.contract import Likelihood, bits_per_value
from components.likelihood.dequantise import levels
from components.likelihood.logistics import draw, log_probability, num_outputs
from components.metrics.held_out import BITS
from components.nets.pixelcnn import PixelCNN
from components.sampling.requests import Request
from components.sampling.trajectories import Call, Preview, Trajectory
from components.shapes import refuse_unless_planar
from components.training.optimizers import OptimizerConfig


class Config(Strict):
    width: int = Field(32, ge=1)  # channels of each stream
    blocks: int = Field(6, ge=1)  # each sees two lines further
    mixtures: int = Field(5, ge=1)  # logistics of a pixel
    dropout: float = Field(0.0, ge=0, lt=1)  # of the blocks' middles
    classes: bool = True  # whether pixels depend on the class, where the data have some
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=2e-3, warmup=50, schedule="cosine")


class Settings(Strict):
    temperature: float = Field(1.0, ge=0, le=2)  # of the mixture's choice and of its logistics


class Model(Sampler):
    Config = Config
    Settings = Settings
    kept = ("pixelcnn",)
    needs_class = True
    held_out = BITS

    def __init__(self, config: Config, data: DataInfo):
        self.config, self.data = config, data
        refuse_unless_planar(data.shape, 1, "pixelcnn")
        self.levels = levels(self.medium)
        self.accepts = frozenset({"source", "label"} if config.classes and data.classes else {"source"})
        outputs = num_outputs(data.shape[0], config.mixtures)
        classes = len(data.classes) if self.conditional else 0
        net = PixelCNN(data.shape, outputs, config.width, config.blocks, classes)
        self.nets = nn.ModuleDict({"pixelcnn": net})
        self.calls = {"pixelcnn": net.next}
        self.phases = (Phase("likelihood", "pixelcnn", self.loss, config.optimizer),)

    def loss(self, net: nn.Module, batch: Batch) -> Losses:
        """Bits per dimension of the batch's rows."""
        rows = self.medium.rows(batch.columns)
        numbers = net(rows, batch.columns["label"] if self.conditional else None, self._kept(batch))
        found = log_probability(numbers, rows, self.levels, self.config.mixtures).float()
        return {"loss": bits_per_value(found.mean(), rows[0].numel())}

    def _kept(self, batch: Batch) -> Tensor | None:
        """Dropout's factors (B, blocks, F, H, W) of a batch."""
        share = self.config.dropout
        if not share:
            return None
        shape = (self.config.blocks, self.config.width, *self.data.shape[1:])
        return (batch.draws.uniform("dropout", shape) >= share).float() / (1 - share)

    @property
    def likelihood(self) -> Likelihood:
        return Likelihood("exact", "none", self._log_probability)

    def _log_probability(self, rows: Tensor, label: Tensor | None, draws: Draws) -> Tensor:
        numbers = self.nets["pixelcnn"](rows, label if self.conditional else None)
        return log_probability(numbers, rows, self.levels, self.config.mixtures)

    def _trajectory(self, request: Request) -> Trajectory:
        """Pixel by pixel; those of a source that stay are taken as they are, and what comes after goes on from them."""
        channels, height, width = self.data.shape
        mixtures, count = self.config.mixtures, height * width
        uniform = Draws.of_seeds(request.seeds).uniform("pixel", (count, mixtures + channels))
        stays, known = self._known(request)
        pixels = known.new_zeros(known.shape)  # (B, H * W, C)
        steered = {"label": request.conditions.label} if self.conditional else {}
        for place in range(count):
            inputs = {"position": torch.full_like(request.seeds, place), "previous": pixels[:, max(place - 1, 0)]}
            preview = Preview(place / count, self._so_far(pixels, place)) if place % width == 0 else None
            numbers = yield Call("pixelcnn", inputs | steered, preview, stateful=True)
            drawn = draw(numbers, uniform[:, place], self.levels, mixtures, request.settings.temperature)
            pixels = pixels.index_copy(
                1,
                torch.tensor([place], device=pixels.device),
                torch.where(stays[:, place, None], known[:, place], drawn)[:, None],
            )
        return self._rows(pixels)

    def _known(self, request: Request) -> tuple[Tensor, Tensor]:
        """Which pixels stay, (B, H * W), and the source's pixels (B, H * W, C). Without a mask, the lower `strength` of
        the lines is drawn anew."""
        _, height, width = self.data.shape
        source = request.conditions.source
        if source is None:
            shape = (len(request.seeds), height * width)
            device = request.seeds.device
            return torch.zeros(shape, dtype=torch.bool, device=device), torch.zeros(
                *shape, self.data.shape[0], device=device
            )
        if source.mask is not None:
            stays = source.mask.flatten(1) < 0.5
        else:
            first = height - round(source.strength * height)
            lines = torch.arange(height, device=request.seeds.device) < first
            stays = lines[:, None].expand(height, width).flatten().expand(len(source), -1)
        return stays, self.medium.to_floats(self.medium.to_stored(source.images)).flatten(2).transpose(1, 2)

    def _rows(self, pixels: Tensor) -> Tensor:
        return pixels.transpose(1, 2).unflatten(2, self.data.shape[1:]).contiguous()

    def _so_far(self, pixels: Tensor, place: int) -> Callable[[], Trajectory]:
        """The rows with the first `place` pixels, grey beyond."""

        def start() -> Trajectory:
            return self._rows(pixels)
            yield

        return start


TINY = Tiny(
    {"width": 4, "blocks": 1, "mixtures": 2, "dropout": 0.2},
    data=DataInfo(shape=(1, 5, 6), classes=("nought", "one", "two")),  # a call a pixel
)
