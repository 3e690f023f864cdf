"""What a family of models is: the contract that the training loop, evaluation, export and serving rely on.

One file in this folder adds a model. It says what networks there are, what each training phase minimises, and, for a
sampler, how images come about. It knows no cluster, no tracker and no path.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from components.config import Strict
from components.data import Batch, Manifest
from components.errors import SamplerError
from components.optimizers import OptimizerConfig
from components.sampling import Request, Trajectory, drive

Losses = dict[str, Tensor]  # "loss" is what is minimised; the other scalars are its terms and figures for the curves


@dataclass(frozen=True)
class Phase:
    """One player's move: which net moves, by which loss, how often.

    `loss(net, batch)` receives the net as the loop has wrapped it (data parallelism lives in the wrapper's forward) and
    must call it exactly once; every other network is frozen meanwhile.

    Where other phases of the step want what the net makes, `ahead(net, batch)` makes the one call, before any phase
    moves: all losses find its result in `batch.ahead` by the phase's name, the phase's own to learn through, the others
    to detach. It is not there while the phase is not due, nor where a batch is computed in parts; a loss that misses
    it must come to the same by a call of its own.
    """

    name: str
    net: str
    loss: Callable[[nn.Module, Batch], Losses]
    optimizer: OptimizerConfig
    every: int = 1  # steps: 5 means at steps 4, 9, 14, ...
    after: Callable[[nn.Module], None] | None = None  # sees the net itself after each of its optimizer's steps
    low_precision: bool = True  # whether `precision: auto` may compute its networks in bfloat16
    ahead: Callable[[nn.Module, Batch], dict[str, Tensor]] | None = None


class DataInfo(Strict):
    """What a family must know of its data: the shape of a row, the classes, facts about the whole set, and, for
    latents, the autoencoder that they come from."""

    shape: tuple[int, int, int]  # channels, height, width
    classes: tuple[str, ...] = ()
    statistics: dict[str, tuple[float, ...]] = {}
    autoencoder: AutoencoderInfo | None = None


class AutoencoderInfo(Strict):
    """How to build the autoencoder of a latent data set."""

    config: dict
    data: DataInfo


def data_info(manifest: Manifest, autoencoder: AutoencoderInfo | None = None) -> DataInfo:
    """Reads off a manifest what its families need. The row is the column `image`, or `mean` for latents."""
    column = manifest.columns["image" if "image" in manifest.columns else "mean"]
    return DataInfo(
        shape=column.shape, classes=manifest.classes, statistics=manifest.statistics, autoencoder=autoencoder
    )


class Family:
    """A model and how it is trained. Subclasses fill `nets` and `phases` in their __init__(config, data)."""

    Config: ClassVar[type[Strict]]

    nets: nn.ModuleDict  # by the name that Phase.net and Call.net use
    phases: tuple[Phase, ...]
    kept: tuple[str, ...]  # the nets that make the trained model; their average goes into the run folder
    pretrained: tuple[str, ...] = ()  # nets that are never trained here; kept, but not averaged

    def preview(self, columns: Mapping[str, Tensor]) -> Tensor | None:
        """Images to look at during training, (N, C, H, W) in [-1, 1], or None. `columns`: rows of the training set."""
        return None

    def watch(self, train: Mapping[str, Tensor], held_out: Mapping[str, Tensor], judge: Family) -> Mapping[str, float]:
        """Figures of a checkpoint beside its losses. `train`, `held_out`: rows of the training set and of images that
        are not trained on; `judge`: a classifier of them. Averaged nets hold their average, others their live weights.
        """
        return {}


class Sampler(Family):
    """A family that generates images."""

    Settings: ClassVar[type[Strict]]
    data: DataInfo
    calls: Mapping[str, Callable[..., Tensor]]  # what answers the calls of its trajectories, by Call.net
    conditional: bool = False  # whether labels steer it

    def trajectory(self, request: Request) -> Trajectory:
        """The coroutine that makes the images of a request: (B, C, H, W) in [-1, 1]."""
        raise NotImplementedError

    def preview(self, columns: Mapping[str, Tensor]) -> Tensor:
        seeds = torch.arange(20)
        return self.sample(Request(seeds, self.cycled_labels(len(seeds)), self.Settings()))

    def sample(self, request: Request) -> Tensor:
        """Images of a request on the spot, on the device of the nets, in evaluation mode."""
        self.nets.eval()
        device = next(self.nets.parameters()).device
        labels = None if request.labels is None else request.labels.to(device)
        return drive(self.trajectory(Request(request.seeds.to(device), labels, request.settings)), self.calls)

    def cycled_labels(self, count: int) -> Tensor | None:
        """Labels 0, 1, 2, ... in turn, or None where the sampler takes none."""
        return torch.arange(count) % self.num_classes if self.conditional else None

    @property
    def num_classes(self) -> int:
        return len(self.data.classes)


def refuse_unless_square(shape: tuple[int, int, int], multiple: int, name: str) -> None:
    """Raises SamplerError unless height and width are equal and divisible by `multiple`."""
    _, height, width = shape
    if height != width or height % multiple:
        raise SamplerError(
            f"{name}: expected square images whose side is a multiple of {multiple}, found {height}x{width}"
        )
