"""Diffusion on the latents of an autoencoder (Rombach et al. 2022), or on small images themselves (Ho et al. 2020);
of no class, classes, or texts."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from components.conditioning.classes import apart
from components.conditioning.dropout import leads_away, unheard_guidance
from components.conditioning.sizes import refuse_without_crops
from components.config import parse
from components.data.dataset import Batch
from components.data.info import TEACHER, DataInfo, DataOutline, RunInfo
from components.data.randomness import Draws
from components.diffusion import alignment, likelihood, reuse, schedules, weightings
from components.diffusion.building import (
    SPEAKERS,
    STEERING,
    build_denoiser,
    build_guide,
    refuse_unless_described,
    text_inputs_of,
)
from components.diffusion.config import Config, Settings
from components.diffusion.denoiser import Denoiser
from components.diffusion.guidance import (
    Condition,
    Denoise,
    Guidance,
    Preconditioner,
    keeping,
    solve,
    thresholded,
)
from components.diffusion.levers import Levers
from components.diffusion.likelihood import log_density
from components.diffusion.objectives import OBJECTIVES, target
from components.diffusion.solvers import SOLVERS, Noise, Solver
from components.errors import SamplerError
from components.families import family_class, family_name
from components.families.base import Early, Family, Losses, Phase, Role, Sampler, Tiny
from components.likelihood.contract import Likelihood
from components.metrics.held_out import DENOISING, NUM_LEVELS
from components.sampling.blends import between, drawn, lerp
from components.sampling.requests import BLEND, Request
from components.sampling.trajectories import Call, Preview, Trajectory
from components.shapes import per_row, pooled, shape_text
from components.spaces import Latents, Pixels

GUIDE = "guide"  # the net that autoguidance leads away from: an early average, or another run's (Karras et al. 2024a)


class Model(Levers, Sampler):
    Config = Config
    Settings = Settings
    kept = ("denoiser", "autoencoder")
    pretrained = ("autoencoder",)
    held_out = DENOISING

    def __init__(self, config: Config, data: DataInfo):
        self.config, self.data = config, data
        speaker = SPEAKERS.get(config.conditioning, ()) if data.speakers else ()
        size = ("size",) if config.crops else ()
        self.accepts = frozenset({"source", BLEND, *STEERING[config.conditioning], *speaker, *size})
        refuse_unless_described(config, data)
        config.backbone.refuse_unfit(data.shape, family_name(type(self)))
        self.crops = config.crops
        if config.crops:
            refuse_without_crops(family_name(type(self)), data)
            for size in data.crops:
                config.backbone.refuse_unfit((data.shape[0], *size), family_name(type(self)))
        self.space = self.space_of(data)
        self.autoencoder = self.space.autoencoder
        denoiser = self.build(config, data)
        self.null = 0 if self.texts else denoiser.conditioner.null
        self.text_inputs = text_inputs_of(config, data)
        self.libraries = self.text_inputs.libraries
        self.early = self.early_nets(config)
        copies = {name: copy.deepcopy(denoiser) for name in self.early}
        guides = {name: build_guide(config, data, run) for name, run in data.inputs.items() if name == GUIDE}
        fixed = {**self.space.nets, **self.text_inputs.nets, **guides}
        self.nets = nn.ModuleDict({"denoiser": denoiser, **fixed, **copies})
        self.pretrained = tuple(fixed)
        self.kept = ("denoiser", *self.pretrained, *self.early)
        self.calls = {**self.space.calls, **self.text_inputs.nets}
        for name, net in {"denoiser": denoiser, **copies, **guides}.items():
            self.calls |= reuse.calls(name, net.denoise if self.texts else net)
            self.calls |= {text_of(name): net.conditioner.text} if self.texts else {}
        self.schedule = schedules.build(config.schedule)
        self.preconditioner = Preconditioner(config.objective, self.schedule)
        self.phases = (Phase("denoise", "denoiser", self.loss, config.optimizer),)

    def space_of(self, data: DataInfo) -> Latents | Pixels:
        """What it is diffusion in."""
        return Pixels(data) if data.autoencoder is None else Latents(data)

    def build(self, config: Config, data: DataInfo) -> Denoiser:
        """The net that is trained, with initial weights."""
        net = build_denoiser(config, data)
        if config.alignment is not None:
            counts = net.backbone.counts(data.shape)
            net.projector = alignment.projector(net.backbone.embedding_dim, counts, data, _classifier_of)
        return net

    @classmethod
    def early_nets(cls, config: Config) -> dict[str, Early]:
        return {} if config.guide is None else {GUIDE: Early("denoiser", config.guide.at, config.guide.sigma_rel)}

    @classmethod
    def roles(cls, config: Config) -> dict[str, Role]:
        guide = {GUIDE: Role(family="latent_diffusion", kept=True)}
        return (
            guide
            if config.alignment is None
            else {**guide, TEACHER: Role(family="judge", needed=True, kept=True, beside_data=True)}
        )

    def receive(self, role: str, given: Family) -> None:
        if role == TEACHER:
            return super().receive(role, given)
        assert role == GUIDE, f"latent_diffusion takes no {role}"
        learned = given.nets["denoiser"].state_dict()
        self.nets[GUIDE].load_state_dict({name: learned[name] for name in self.nets[GUIDE].state_dict()})

    @classmethod
    def why_not(cls, config: Config, settings: Settings, data: DataOutline) -> str | None:
        if data.latents and settings.dynamic_threshold is not None:
            return "dynamic_threshold: latents have no bounds; expected a sampler of the images themselves"
        if settings.guidance == "autoguidance" and config.guide is None and GUIDE not in data.inputs:
            return (
                "guidance: autoguidance needs a worse net: a snapshot from early in the training, which model.guide "
                "keeps, or a run that inputs names as NAME/guide"
            )
        return reuse.why_not(config.backbone, settings.reuse)

    @classmethod
    def unheard(cls, config: Config, settings: Settings, data: DataOutline) -> str | None:
        if settings.guidance == "autoguidance":
            return None
        return unheard_guidance(config.conditioning, config.label_dropout, settings)

    def loss(self, net: nn.Module, batch: Batch) -> Losses:
        return self._loss_at(self._sigma(self.times(batch.draws).double()), net, batch, self._told(batch))

    def _told(self, batch: Batch) -> Condition:
        """What steers the net in training, by its inputs."""
        condition = self._training_condition(batch, self.config.label_dropout)
        return {**condition, **self._training_further(batch, self.config.flips)}

    def _loss_at(self, sigma: Tensor, net: nn.Module, batch: Batch, told: Condition) -> Losses:
        """Of a net at noise levels (B,)."""
        rows = self.space.clean(batch, self.config.flips)
        clean = self.space.normalise(rows)
        inputs, wanted = self._question(clean, batch.draws.normal("noise", clean.shape[1:]), sigma)
        answer, u, projected = self.answered(net, inputs | told | self.routed(batch, clean), batch.step)
        if self.config.weighting.name == "uniform":
            losses = {"loss": (answer - wanted).square().mean()}
        else:
            losses = self._weighted((answer - wanted).square().flatten(1).mean(1), sigma, u)
        return self.aligned(losses, projected, rows, batch)

    def _weighted(self, error: Tensor, sigma: Tensor, u: Tensor | None) -> Losses:
        """Of rows' errors (B,) at noise levels (B,); `u`: the logarithms of those that the net expects, if it does."""
        if u is None:
            weight = weightings.min_snr(
                sigma, OBJECTIVES[self.config.objective](sigma), self.config.weighting.gamma
            ).float()
            return {"loss": (weight * error).mean(), "error": error.mean()}
        return {"loss": weightings.balanced(error, u).mean(), "error": error.mean()}

    def _sigma(self, times: Tensor) -> Tensor:
        """The noise levels of times in (0, 1)."""
        return self.schedule.sigma(times)

    def _question(self, clean: Tensor, noise: Tensor, sigma: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """What the net is asked of rows (B, C, ...) at noise levels (B,), but for what steers it, and what it should
        answer."""
        wide, objective = per_row(sigma, clean), OBJECTIVES[self.config.objective]
        noisy = objective(wide).c_in.float() * (clean + wide.float() * noise)
        inputs = {"x": noisy, "level": self.preconditioner.level(sigma).float()}
        return inputs, target(clean, noise, wide, objective)

    def held_out_losses(self, columns: Mapping[str, Tensor], draws: Draws) -> Tensor:
        """(B, NUM_LEVELS) mean squared errors of the net's answers, unweighted, told class or text. The levels are the
        middles of equal parts of the training's own, so that their mean estimates its loss."""
        batch = Batch(dict(columns), draws)
        clean = self.space.normalise(self.space.clean(batch, flips=False))
        told = self._training_condition(batch, label_dropout=0) | self._training_further(batch, flips=False)
        shares = (torch.arange(NUM_LEVELS, dtype=torch.float64) + 0.5) / NUM_LEVELS
        errors = []
        for number, sigma in enumerate(self._sigma(self.config.times.quantiles(shares)).tolist()):
            sigmas = torch.full_like(draws.keys, sigma, dtype=torch.float64)
            inputs, wanted = self._question(clean, draws.normal(f"noise {number}", clean.shape[1:]), sigmas)
            errors.append((self.nets[self.phases[0].net](**inputs, **told) - wanted).square().flatten(1).mean(1))
        return torch.stack(errors, dim=1)

    def training_columns(self, columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.space.columns(columns) | self._embedded(columns)

    def _embedded(self, columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The captions' embeddings, where they lie beside the latents."""
        return self.text_inputs.columns(columns) if self.texts else {}

    def _training_condition(self, batch: Batch, label_dropout: float) -> Condition:
        """Conditioning of each row in training: its class (B,), or its text; dropped for a share."""
        dropped = batch.draws.uniform("label_dropout") < label_dropout
        if self.texts:
            return {"tokens": self.text_inputs.trained(batch, dropped)}
        if not self.conditional:
            return {"label": torch.full_like(dropped, self.null, dtype=torch.int64)}
        speaker, conditioner = None, self.nets["denoiser"].conditioner
        if self.num_speakers:  # a dropped class takes its speaker along; as many speakers more are dropped alone
            nobody = dropped | (batch.draws.uniform("speaker_dropout") < label_dropout)
            speaker = batch.columns["speaker"].masked_fill(nobody, self.num_speakers)
        return {"label": conditioner.together(batch.columns["label"].masked_fill(dropped, self.null), speaker)}

    def _training_further(self, batch: Batch, flips: bool) -> Condition:
        """What the net is told of each row beside class and text, by the names of Denoiser.further. `flips`: whether
        rows are seen mirrored, as those that are made noisy."""
        return {}

    def times(self, draws: Draws) -> Tensor:
        """(B,) training times in (0, 1)."""
        times = self.config.times
        if times.density == "uniform":
            return draws.uniform("time")
        return torch.sigmoid(times.mean + times.std * draws.normal("time", ()))

    @property
    def likelihood(self) -> Likelihood | None:
        """Of pixels, or of latents as such, that are steered by classes or by nothing."""
        return None if self.texts else self.space.likelihood(self._log_density)

    def _log_density(self, clean: Tensor, label: Tensor | None, draws: Draws) -> Tensor:
        """(B,) in nats, of what space.normalise gives."""
        label = label if self.conditional and label is not None else torch.full_like(draws.keys, self.null)
        label = self.nets["denoiser"].conditioner.together(*apart(label))
        signs = 2 * (draws.uniform("probe", self.data.shape) < 0.5).float() - 1

        def denoise(x: Tensor, sigma: float) -> Tensor:
            inputs = self.preconditioner.question(x, sigma) | {"label": label.clone()}
            return self.preconditioner.denoised(x, sigma, self.nets["denoiser"](**inputs))

        largest = self.schedule.sigma(torch.ones(1, dtype=torch.float64)).item()
        return log_density(denoise, clean, signs, likelihood.levels(largest))

    def _trajectory(self, request: Request) -> Trajectory:
        settings, source = request.settings, request.conditions.source
        sigmas = self.sigmas(settings, 1.0 if source is None else source.strength)
        shape = self._shape(request)

        def noise(name: int | str) -> Tensor:
            return drawn(request, lambda draws: draws.normal(name, shape))

        start = sigmas[0] * noise("start")
        guidance = self._guidance(settings)
        if guidance.guide is None and not self._leads_away(request):
            guidance = replace(guidance, scale=1.0)
        denoise = yield from self._denoise(request, guidance, sigmas)
        if (quantile := self._threshold(settings)) is not None:
            denoise = self._bounded(denoise, quantile, request)
        finish = self.space.decode
        if source is not None:
            known = yield from self.space.encode(source.images)
            start = known + start  # SDEdit: Meng et al. 2022, Algorithm 1
            if source.mask is not None:
                denoise = keeping(denoise, known, self._cells(source.mask))
                finish = functools.partial(self._paste, source.images, source.mask)
        solver = self._solver(settings)(start, sigmas, noise)

        def preview(x0: Tensor, sigma: float) -> Preview:
            return Preview((sigmas.index(sigma) + 1) / (len(sigmas) - 1), lambda: finish(x0))

        return (yield from finish((yield from solve(solver, denoise, preview))))

    def _bounded(self, denoise: Denoise, quantile: float, request: Request) -> Denoise:
        return thresholded(denoise, quantile, self.space.normalise, self.space.denormalise)

    def _cells(self, mask: Tensor) -> Tensor:
        """A mask of pixels as one of what is denoised: a latent is redrawn with any pixel of its cell."""
        return pooled(mask, self.data.shape[1:])

    @property
    def sizes(self) -> tuple[tuple[int, ...], ...]:
        crops = map(self.space.drawn, self.data.crops if "size" in self.accepts else ())
        return tuple(dict.fromkeys([self.row_shape[1:], *crops]))

    def _shape(self, request: Request) -> tuple[int, ...]:
        """Of the rows or latents that a request asks for. Raises SamplerError of an edit at another size."""
        usual, size = self.row_shape[1:], request.conditions.size
        if size is None or (sides := tuple(size[0].tolist())) == usual:
            return self.data.shape
        if request.conditions.source is not None:
            raise SamplerError(f"size: an image is edited at its own, {shape_text(usual)}")
        return (self.data.shape[0], *next(cells for cells in self.data.crops if self.space.drawn(cells) == sides))

    def _guidance(self, settings: Settings) -> Guidance:
        worse = GUIDE if settings.guidance == "autoguidance" else None
        return Guidance(settings.guidance_scale, settings.guidance_interval, settings.guidance_rescale, worse)

    def _leads_away(self, request: Request) -> bool:
        """Whether the net has learned an answer that classifier-free guidance can lead away from."""
        return leads_away(self.config.label_dropout, request.conditions)

    def _threshold(self, settings: Settings) -> float | None:
        return settings.dynamic_threshold

    def _solver(self, settings: Settings) -> Callable[[Tensor, Sequence[float], Noise], Solver]:
        return SOLVERS[settings.solver]

    def _denoise(
        self, request: Request, guidance: Guidance, sigmas: Sequence[float]
    ) -> Generator[Call, Tensor, Denoise]:
        """What answers a request's solver, which visits these noise levels."""
        towards, away = yield from self._conditions(request, guidance)
        return self.preconditioner.guided(towards, away, guidance, request.settings.reuse)

    def _conditions(self, request: Request, guidance: Guidance) -> Generator[Call, Tensor, tuple[Condition, Condition]]:
        """What to go towards, and what the worse answer is asked about."""
        if self.texts:
            return (yield from self._texts(request, guidance))
        null, conditioner = torch.full_like(request.seeds, self.null), self.nets["denoiser"].conditioner
        asked = request.conditions
        towards = conditioner.together(null if asked.label is None else asked.label, asked.speaker)
        away = conditioner.together(null if asked.negative_label is None else asked.negative_label, None)
        if request.blend is not None and request.blend.label is not None:
            # linear between the classes' embeddings, which are the rows of the weights that these numbers weigh
            ends = (towards, conditioner.together(request.blend.label, asked.speaker), away)
            towards, other, away = map(conditioner.weights, ends)
            towards = lerp(towards, other, request.blend.share)
        return {"label": towards}, {"label": towards if guidance.guide is not None else away}

    def _texts(self, request: Request, guidance: Guidance) -> Generator[Call, Tensor, tuple[Condition, Condition]]:
        """The same of texts: all that a net is asked about goes into one call of what encodes them for it."""
        nothing = ("",) * len(request.seeds)
        wanted = request.conditions.prompt or nothing
        against = request.conditions.negative_prompt or nothing
        other = request.blend.prompt if request.blend is not None else None
        asked = [wanted] if other is None else [wanted, other]
        alike = guidance.guide is None and all(texts == against for texts in asked)
        alone = guidance.scale == 1 or alike or guidance.guide is not None
        groups = asked if alone else [*asked, against]
        tokens = yield from self.text_inputs.asked([text for group in groups for text in group])
        tokens = tokens.to(request.seeds.device)
        own = yield from self._heard("denoiser", tokens, len(groups))
        towards = own[0] if other is None else between(*own[:2], request.blend.share)
        if guidance.scale == 1 or alike:
            return towards, towards
        if guidance.guide is None:
            return towards, own[-1]
        worse = yield from self._heard(guidance.guide, tokens, len(groups))
        return towards, worse[0] if other is None else between(*worse, request.blend.share)

    def _heard(self, net: str, tokens: Tensor, groups: int) -> Generator[Call, Tensor, list[Condition]]:
        """What steers a net by as many groups of texts."""
        return [{"context": part} for part in (yield Call(text_of(net), {"tokens": tokens})).chunk(groups)]

    def _paste(self, images: Tensor, mask: Tensor, latents: Tensor) -> Trajectory:
        """Decodes, and keeps the images' own pixels where the mask is 0: a decoder changes all a little."""
        return torch.lerp(images, (yield from self.space.decode(latents)), mask)

    @property
    def caption_limits(self) -> Mapping[str, int]:
        return {"model.text.length": self.text_inputs.length} if self.texts and self.text_inputs.length else {}

    def prompts_of(self, captions: Sequence[str]) -> tuple[str, ...]:
        return self.text_inputs.prompts_of(captions)

    def sigmas(self, settings: Settings, strength: float = 1.0) -> list[float]:
        """The noise levels that a request visits, noisiest first, 0 last: from `strength` of the way up, in as large a
        share of the steps."""
        return schedules.spaced_sigmas(self.schedule, settings.spacing, settings.num_inference_steps, strength)


def _classifier_of(run: RunInfo) -> nn.Module:
    """A judge's net, with initial weights."""
    kind = family_class(run.family)
    return kind(parse(kind.Config, run.config, TEACHER), run.data).nets["classifier"]


def text_of(net: str) -> str:
    """The name of the call to a net's text encoder."""
    return f"{net}_text"


TINY = Tiny(
    {"backbone": {"widths": (8, 16), "heads": 2, "context_dim": 8}},
    data="latents",
    settings={"num_inference_steps": 4},
)
