"""What a family of models is: the contract that the training loop, evaluation, export and serving rely on.

One file in this folder adds a model. It says what networks there are, what each training phase minimises, and, for a
sampler, how images come about. It knows no cluster, no tracker and no path.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from components.conditioning.classes import told_of
from components.conditioning.text import texts_of_column
from components.config import Strict
from components.data.dataset import Batch
from components.data.info import DataInfo, DataOutline, RunInfo
from components.data.media import Medium, medium
from components.data.randomness import Draws
from components.errors import SamplerError
from components.families import family_name
from components.likelihood.contract import Likelihood, bits_per_value
from components.metrics.figures import Definition, Figures
from components.metrics.held_out import HeldOutLoss
from components.metrics.reconstruction import PSNR, RECONSTRUCTION_FD, SSIM, reconstruction_figures
from components.sampling.blends import drawn, lerp
from components.sampling.requests import BLEND, Conditions, Request, Takes, refuse_unfit
from components.sampling.trajectories import Call, Trajectory, drive
from components.training.optimizers import OptimizerConfig

Told = tuple[Tensor, Tensor | None]  # rows and their classes
Losses = dict[str, Tensor]  # "loss" is what is minimised; the other scalars are its terms and figures for the curves


@dataclass(frozen=True)
class Phase:
    """A training phase: which net is trained, by which loss, how often.

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
    one_backward: bool = True  # whether one backward pass is all that a loss asks of its net: no second, none forwards


class Role(NamedTuple):
    """An input of a training: another trained run, or a file of weights, that params.yaml names under `inputs`.

    `kind`: what its family must be, such as Judge; any sampler by default. `family`: its very name. `kept`: whether the
    model needs a net of it to sample; DataInfo.inputs then says how to build it, and the net of the role's name goes
    into the run folder. `beside_data`: what it says of each row may lie in the data set, then made by the same run."""

    kind: type[Family] | None = None
    family: str = ""
    needed: bool = False
    kept: bool = False
    is_file: bool = False  # of weights, and no run folder
    beside_data: bool = False


@dataclass(frozen=True)
class Tiny:
    """Test configuration of a family, `TINY` in its file: contract tests train and sample it in a second.

    `data`: the kind of data set that it takes, as tests/components/helpers.py makes them, or one of its own.
    `settings`: quick ones of a sampler. `prepare` changes the newly built family, where training does not begin with a
    fresh one.
    """

    config: Mapping[str, Any]
    data: Literal["images", "captioned images", "latents", "captioned latents", "tokens"] | DataInfo = "images"
    settings: Mapping[str, Any] = field(default_factory=dict)
    prepare: Callable[[Family], None] | None = None


class Early(NamedTuple):
    """A net that is another's average at a share of the run, from snapshots that the training keeps."""

    net: str
    at: float  # share of the run
    sigma_rel: float  # the average's width


class Family:
    """A model and how it is trained. The class `Model` of a family's file fills `nets` and `phases` as it is made."""

    Config: ClassVar[type[Strict]]

    nets: nn.ModuleDict  # by the name that Phase.net and Call.net use
    phases: tuple[Phase, ...]
    data: DataInfo
    kept: tuple[str, ...]  # the nets that make the trained model; their average goes into the run folder
    pretrained: tuple[str, ...] = ()  # nets that are never trained here; kept, but not averaged
    in_data: Mapping[str, str] = {}  # of pretrained nets, what their files beside the data are called, where it differs
    libraries: tuple[str, ...] = ()  # beyond torch, that own a part of its nets
    early: Mapping[str, Early] = {}  # kept nets that are snapshots of others; what early_nets says
    added: tuple[str, ...] = ()  # kept nets that a run to start from may lack: they begin with initial weights
    received: Mapping[str, Family | nn.Module] = {}  # inputs by role, frozen, on the device of the nets
    inherits: ClassVar[Mapping[str, tuple[str, ...]]] = {}  # by role, the config's keys that a run's own stand in for
    held_out: ClassVar[HeldOutLoss | None] = None  # what `held_out_losses` gives; None: it gives nothing
    checkpoint_figures: ClassVar[tuple[str, ...]] = ()  # names of what `validate` gives without a judge
    caption_limits: Mapping[str, int] = {}  # bytes that captions are cut to, by what says so
    judged_figures: ClassVar[tuple[Definition, ...]] = ()  # what it may give with one, beside those; () does not say
    own_figures: ClassVar[tuple[Definition, ...]] = ()  # what `figures` of a sampler or judge may give; likewise
    crops: bool = False  # whether it trains on crops, of one size a batch, of a data set that has them
    whole_batch: ClassVar[bool] = False  # whether a loss compares the rows of a batch, which no parts of it can
    prefers_best: ClassVar[bool] = False  # whether a run is read at its best checkpoint, where it kept one

    @property
    def medium(self) -> Medium:
        """Of its rows or, where it works on latents or tokens, of what they decode to."""
        return medium(self.data.decoded.medium, rate=self.data.decoded.rate)

    @classmethod
    def early_nets(cls, config: Strict) -> Mapping[str, Early]:
        """The nets of a model of this config that are earlier averages of others, by their names."""
        return {}

    @classmethod
    def roles(cls, config: Strict) -> Mapping[str, Role]:
        """The inputs that a training of this config takes beside those of every family, GENERAL_ROLES."""
        return {}

    @classmethod
    def refuse_unfit_input(cls, config: Strict, data: DataInfo, role: str, run: RunInfo) -> None:
        """Raises ConfigError of a run that a model of this config and data cannot take in a role, though its family
        fits."""

    def receive(self, role: str, given: Family | nn.Module) -> None:
        """Takes the input of a role before training: a run's family with its averaged weights, or a net whose weights
        are a file. It is frozen, in evaluation mode."""
        self.received = {**self.received, role: given}

    def to(self, device: torch.device | str) -> None:
        """Moves its nets and its inputs."""
        self.nets.to(device)
        for given in self.received.values():
            given.to(device)

    def nets_of_input(self, role: str) -> tuple[str, ...]:
        """The nets that a kept input fills: that of the role's name."""
        return (role,)

    def begin(self, first: Callable[[], Batch]) -> None:
        """Sets initial weights that depend on data, before a training that begins afresh. `first` reads the whole first
        global batch, the same on every worker."""

    def preview(self, columns: Mapping[str, Tensor]) -> Tensor | None:
        """Rows to look at during training, (N, C, ...) in [-1, 1], or None. `columns`: rows of the training set."""
        return None

    def validate(self, train: Mapping[str, Tensor], held_out: Mapping[str, Tensor], judge: Judge | None) -> Figures:
        """Checkpoint validation: figures beside the losses. `train`, `held_out`: rows of the training set and of images
        that are not trained on; `judge`: a classifier of them, None only where `checkpoint_figures` says that there are
        some without. Averaged nets hold their average, others their live weights."""
        return {}

    def held_out_losses(self, columns: Mapping[str, Tensor], draws: Draws) -> Tensor:
        """(B, L) losses of rows by the weights of the moment, one for each of `held_out.levels`: a function of the rows
        and of their draws, which are the same at every checkpoint. `columns`: as training has them, on the nets'
        device."""
        raise NotImplementedError

    def training_columns(self, columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Columns of rows of the medium as the training set has them: encoded, where it trains on what an encoder makes
        of them."""
        return dict(columns)


class Judge(Family):
    """Classifier of the data's classes: evaluation's feature extractor and classifier by default.

    `nets["classifier"]` has `features`, rows (B, C, ...) in [-1, 1] -> (B, D), and `logits`, those -> (B, num_classes)
    where it tells classes. Of data without two classes its features are learned without labels.
    """

    kept = ("classifier",)

    def figures(self, rows: Tensor, labels: Tensor | None) -> Figures:
        """What this judge alone can tell of `rows`, (N, C, ...) in [-1, 1], that should show `labels`, (N,) or None."""
        return {}

    @property
    def tells_classes(self) -> bool:
        """Whether `logits` are of the data's classes."""
        return len(self.data.classes) > 1


# of every family: whose weights and model a training goes on from, and what validates its checkpoints
START, JUDGE = "start", "judge"
GENERAL_ROLES = {START: Role(), JUDGE: Role(Judge)}


def roles_of(name: str, kind: type[Family], config: Strict) -> dict[str, Role]:
    """All inputs that a training of a family may have, by role."""
    return {**GENERAL_ROLES, START: Role(family=name), **kind.roles(config)}


class Sampler(Family):
    """A family that generates rows of a medium."""

    Settings: ClassVar[type[Strict]]
    calls: Mapping[str, Callable[..., Tensor]]  # what answers the calls of its trajectories, by Call.net
    num_previewed: ClassVar[int] = 20  # images of a preview
    streams: ClassVar[bool] = False  # whether its previews are the rows' beginnings, which stay as they are
    needs_class: ClassVar[bool] = False  # of one that labels steer: whether it draws nothing without one
    beside: ClassVar[Mapping[str, str]] = {}  # settings that change nothing without a condition: its name
    accepts: frozenset[str] = frozenset()  # what steers it: names of Conditions, and "blend"; may depend on the config

    @classmethod
    def why_not(cls, config: Strict, settings: Strict, data: DataOutline) -> str | None:
        """Why a model of this config and data cannot sample with these settings: the setting's name, a colon, the
        reason. None if it can."""
        return None

    @classmethod
    def unheard(cls, config: Strict, settings: Strict, data: DataOutline) -> str | None:
        """Likewise, why what a candidate chooses would change nothing, though the model can sample with it."""
        return None

    def trajectory(self, request: Request) -> Trajectory:
        """The coroutine that makes the rows of a request: (B, C, ...) in [-1, 1]. Raises SamplerError of what the
        sampler does not take, on whatever way a request comes."""
        refuse_unfit(request, self._takes())
        if reason := self.why_not(self.config, request.settings, self.data.outline):
            raise SamplerError(reason)
        return self._trajectory(request)

    def _trajectory(self, request: Request) -> Trajectory:
        """The coroutine itself, of a request that the sampler takes."""
        raise NotImplementedError

    def _takes(self) -> Takes:
        return Takes(
            accepts=self.accepts,
            rows=self.medium.plural,
            shape=self.row_shape,
            num_classes=self.num_classes,
            num_speakers=self.num_speakers,
            sizes=self.sizes,
            needs_class=self.conditional and self.needs_class,
        )

    @property
    def likelihood(self) -> Likelihood | None:
        """Of stored rows, where the model has one."""
        return None

    def held_out_losses(self, columns: Mapping[str, Tensor], draws: Draws) -> Tensor:
        """(B, 1) bits per dimension, of a family that has a likelihood and sets `held_out` to BITS."""
        assert self.likelihood is not None, f"{family_name(type(self))} measures no loss of held-out rows"
        rows = self.medium.rows(columns)
        found = self.likelihood.log_probability(rows, told_of(columns), draws)
        return bits_per_value(found, self.likelihood.values_of(rows))[:, None]

    def between(self, starts: Told, ends: Told, share: Tensor) -> Tensor | None:
        """Rows (B, C, ...) in [-1, 1] between real ones, `share` (B,) of the way through the latents of both; None of a
        sampler that finds no latents of rows. `starts`, `ends`: such rows and their classes (B,), or None."""
        return None

    def figures(self, rows: Tensor, real: Tensor) -> Figures:
        """Figures of a candidate that this family alone has, beside those of all samplers. `rows`: (N, C, ...) that it
        has made, `real`: (M, C, ...) held-out ones, both in [-1, 1]."""
        return {}

    @property
    def usual_settings(self) -> Strict:
        """What is sampled with where nobody chooses."""
        return self.Settings()

    def preview(self, columns: Mapping[str, Tensor]) -> Tensor:
        """Samples of classes in turn, or of the rows' captions."""
        asked, count = self.cycled(self.num_previewed), self.num_previewed
        if self.texts:
            prompts = self.prompts_of(texts_of_column(columns["caption"][: self.num_previewed]))
            asked, count = Conditions(prompt=prompts), len(prompts)
        return self.sample(Request(torch.arange(count), self.usual_settings, asked))

    def prompts_of(self, captions: Sequence[str]) -> tuple[str, ...]:
        """Captions as prompts that it takes, cut where it would refuse longer ones."""
        return tuple(captions)

    def sample(self, request: Request) -> Tensor:
        """Images of a request on the spot, on the device of the nets, in evaluation mode. Raises SamplerError of what
        the sampler cannot do."""
        self.nets.eval()
        return drive(self.trajectory(request.to(next(self.nets.parameters()).device)), self.calls)

    def cycled_labels(self, count: int) -> Tensor | None:
        """Labels 0, 1, 2, ... in turn, or None where the sampler takes none."""
        return torch.arange(count) % self.num_classes if self.conditional else None

    def cycled(self, count: int) -> Conditions:
        """Labels in turn, and speakers, the next one after each round of the classes, where it takes them."""
        speakers = torch.arange(count) // max(1, self.num_classes) % max(1, self.num_speakers)
        return Conditions(label=self.cycled_labels(count), speaker=speakers if "speaker" in self.accepts else None)

    @property
    def conditional(self) -> bool:
        """Whether labels steer it."""
        return "label" in self.accepts

    @property
    def texts(self) -> bool:
        """Whether prompts steer it."""
        return "prompt" in self.accepts

    @property
    def edits(self) -> bool:
        """Whether it can start from a request's source, and redraw a part of it."""
        return "source" in self.accepts

    @property
    def num_classes(self) -> int:
        return len(self.data.classes)

    @property
    def num_speakers(self) -> int:
        return len(self.data.speakers)

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Of what it makes, channels first."""
        return self.data.decoded.shape

    @property
    def sizes(self) -> tuple[tuple[int, ...], ...]:
        """The sides that it can be asked for, its usual ones first."""
        return (self.row_shape[1:],)


class NoSettings(Strict):
    """Of a sampler that has nothing to set."""


class Autoencoder(Sampler):
    """Base of the autoencoders. `nets["autoencoder"]` has `encode`, rows (B, C, ...) in [-1, 1] -> mean and standard
    deviation of the posterior, (B, *latent_shape) each, and `decode`, latents -> rows, not yet bounded."""

    Settings = NoSettings
    kept = ("autoencoder",)
    accepts = frozenset({BLEND})
    judged_figures = (PSNR, SSIM, RECONSTRUCTION_FD)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Of a row's latent, channels first."""
        raise NotImplementedError

    def bounded(self, decoded: Tensor) -> Tensor:
        """The decoder's output as rows in [-1, 1]."""
        return decoded.clamp(-1, 1)

    def decode(self, latents: Tensor) -> Trajectory:
        """Latents as the encoder gives them -> rows in [-1, 1]."""
        decoded = yield Call("decoder", {"latents": latents})
        return self.bounded(decoded)

    def _trajectory(self, request: Request) -> Trajectory:
        """Decodes draws from the prior, the autoencoder as a generator of its own."""
        return (yield from self.decode(drawn(request, lambda draws: draws.normal("latent", self.latent_shape))))

    def between(self, starts: Told, ends: Told, share: Tensor) -> Tensor:
        net = self.nets["autoencoder"]
        first, last = (net.encode(rows)[0] for rows, _ in (starts, ends))
        return self.bounded(net.decode(lerp(first, last, share)))

    @torch.inference_mode()
    def reconstruct(self, rows: Tensor) -> Tensor:
        """Rows through the posterior mean and back, (B, C, ...) in [-1, 1]."""
        net = self.nets["autoencoder"].eval()
        return self.bounded(net.decode(net.encode(rows)[0]))

    def validate(self, train: Mapping[str, Tensor], held_out: Mapping[str, Tensor], judge: Judge) -> Figures:
        """psnr, ssim and reconstruction_fd of rows that were not trained on."""
        rows = self.medium.rows(held_out).to(next(self.nets.parameters()).device)
        pairs = ((part, self.reconstruct(part)) for part in rows.split(256))
        return reconstruction_figures(pairs, judge.nets["classifier"].features)

    def preview(self, columns: Mapping[str, Tensor]) -> Tensor:
        """Lines of ten rows, each above its reconstruction."""
        rows = self.medium.rows(columns)[:20].to(next(self.nets.parameters()).device)
        pairs = zip(rows.split(10), self.reconstruct(rows).split(10), strict=True)
        return torch.cat([line for pair in pairs for line in pair])
