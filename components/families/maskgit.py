"""MaskGIT: all tokens of an image at once, the surest ones kept, the others drawn again (Chang et al. 2022)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from components.data.dataset import Batch
from components.data.info import DataInfo
from components.data.randomness import Draws
from components.families.base import Losses, Phase, Tiny
from components.nets.token_transformer import TokenTransformer
from components.sampling.requests import Request
from components.sampling.trajectories import Call, Preview, Trajectory
from components.tokens.base import TokenConfig, TokenSampler
from components.tokens.draws import DrawSettings, drawn, guided, gumbel, truncated

NUM_MASKS = 8  # of a row, that its likelihood's bound is estimated with


class Config(TokenConfig):
    pass


class Settings(DrawSettings):
    """`choice_temperature`: how much chance decides, at the first step, which tokens are kept; none leads to averages,
    much to noise."""

    num_inference_steps: int = Field(8, ge=1, le=256)
    choice_temperature: float = Field(4.5, ge=0, le=100)


class Model(TokenSampler):
    Config = Config
    Settings = Settings
    Net = TokenTransformer
    is_exact = False

    def __init__(self, config: Config, data: DataInfo):
        super().__init__(config, data)
        self.calls["transformer"] = self.nets["transformer"]
        self.phases = (Phase("unmask", "transformer", self.loss, config.optimizer),)

    def loss(self, net: nn.Module, batch: Batch) -> Losses:
        """The mean cross-entropy of masked tokens in nats, of as many as the cosine of a uniform angle says."""
        tokens, prefix = self.training_tokens(batch), self.training_prefix(batch, self.config.label_dropout)
        share = torch.cos(math.pi / 2 * batch.draws.uniform("mask_share"))
        masked = self._masked(batch.draws, "mask", torch.ceil(share * self.count))
        return {"loss": self._losses(net, tokens, prefix, masked).mean()}

    def token_losses(self, tokens: Tensor, prefix: Tensor, draws: Draws) -> Tensor:
        """By the bound of Uria et al. 2014, equation 5: in a random order, the mean over how many tokens are masked of
        their mean loss. The numbers are one of each of NUM_MASKS equal parts, rows and keys decide which."""
        found = []
        for number in range(NUM_MASKS):
            share = (number + draws.uniform(f"share {number}")) / NUM_MASKS
            masked = self._masked(draws, f"mask {number}", torch.ceil(share * self.count))
            found.append(self._losses(self.nets["transformer"], tokens, prefix, masked))
        return torch.stack(found).mean(0)

    def _masked(self, draws: Draws, name: str, counts: Tensor) -> Tensor:
        """(B, N) booleans, `counts` (B,) of them true, one at least."""
        ranks = draws.uniform(name, (self.count,)).argsort(dim=1, stable=True).argsort(1)
        return ranks < counts.clamp(1, self.count)[:, None]

    def _losses(self, net: nn.Module, tokens: Tensor, prefix: Tensor, masked: Tensor) -> Tensor:
        """(B,) mean over the masked tokens."""
        told = tokens.masked_fill(masked, self.nets["transformer"].untold)
        logits = net(torch.cat([prefix, told], dim=1))[:, prefix.shape[1] :]
        losses = F.cross_entropy(logits.transpose(1, 2), tokens, reduction="none")
        return (losses * masked).sum(1) / masked.sum(1)

    def _trajectory(self, request: Request) -> Trajectory:
        settings, draws, source = request.settings, Draws.of_seeds(request.seeds), request.conditions.source
        prefixes = self.prefixes(request)
        tokens = torch.full((len(request.seeds), self.count), self.vocabulary, device=request.seeds.device)
        if source is not None:
            tokens = yield from self.known(source, draws)
        unknown = tokens == self.vocabulary
        total, last, candidates = unknown.sum(1), settings.num_inference_steps - 1, tokens
        for step in range(settings.num_inference_steps):
            shown = self._preview(candidates, step / (last + 1), source) if step else None
            logits = yield from self._logits(tokens, prefixes, settings, step, shown)
            noise = gumbel(draws.uniform(f"tokens {step}", (self.count, self.vocabulary)))
            candidates = torch.where(unknown, drawn(truncated(logits, settings), noise), tokens)
            if step == last:
                break
            sureness = self._sureness(logits, candidates, draws, settings, step).masked_fill(~unknown, torch.inf)
            left = torch.floor(total * math.cos(math.pi / 2 * (step + 1) / (last + 1)))
            # one is kept and one stays masked, where there are as many
            left = torch.minimum(left.clamp(min=1), unknown.sum(1) - 1)
            unknown = sureness.argsort(dim=1, stable=True).argsort(1) < left[:, None]
            tokens = candidates.masked_fill(unknown, self.vocabulary)
        return (yield from self.finish(candidates, source))

    def _logits(
        self, tokens: Tensor, prefixes: tuple[Tensor, Tensor], settings: Settings, step: int, shown: Preview | None
    ) -> Trajectory:
        """Of all places, (B, N, V), guided."""
        told = tokens.masked_fill(tokens == self.vocabulary, self.nets["transformer"].untold)
        towards, away = prefixes
        scale = settings.scale_at(step, settings.num_inference_steps)
        asked = prefixes if scale != 1 and not torch.equal(towards, away) else (towards,)
        ids = torch.cat([torch.cat([prefix, told], dim=1) for prefix in asked])
        logits = (yield Call("transformer", {"ids": ids}, shown))[:, towards.shape[1] :]
        return logits if len(asked) == 1 else guided(*logits.chunk(2), scale)

    def _sureness(self, logits: Tensor, tokens: Tensor, draws: Draws, settings: Settings, step: int) -> Tensor:
        """(B, N) log-probabilities of the candidates, with Gumbel noise that fades with the steps."""
        chosen = logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
        noise = gumbel(draws.uniform(f"choice {step}", (self.count,)))
        return chosen + settings.choice_temperature * (1 - (step + 1) / settings.num_inference_steps) * noise

    def _preview(self, candidates: Tensor, progress: float, source) -> Preview:
        return Preview(progress, lambda: self.finish(candidates, source))


TINY = Tiny({"width": 16, "depth": 2, "heads": 2}, data="tokens", settings={"num_inference_steps": 3})
