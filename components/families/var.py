"""VAR on the tokens of an autoencoder's scales: all tokens of a grid at once, each grid after all coarser ones, class
or text first (Tian et al. 2024)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.data.dataset import Batch
from components.data.info import AutoencoderInfo, DataInfo
from components.data.randomness import Draws
from components.errors import DataError
from components.families import vae
from components.families.base import Losses, Phase, Tiny
from components.nets.autoencoder.scales import Scales
from components.nets.scale_transformer import ScaleTransformer
from components.sampling.requests import Request, Source
from components.sampling.trajectories import Call, Preview, Trajectory
from components.tokens.base import TokenConfig, TokenSampler
from components.tokens.draws import DrawSettings, drawn, guided, gumbel, truncated


class Config(TokenConfig):
    pass


class Model(TokenSampler):
    Config = Config
    Settings = DrawSettings
    is_exact = True

    def __init__(self, config: Config, data: DataInfo):
        super().__init__(config, data)
        self.calls["transformer"] = self._logits
        self.phases = (Phase("next_scale", "transformer", self.loss, config.optimizer),)

    def _net(self, codebook: nn.Module, conditions: int, prefix: int) -> nn.Module:
        if not isinstance(codebook, Scales):
            raise DataError("var: expected tokens of an autoencoder with model.codebook: {name: scales}, found others")
        config, channels = self.config, self.autoencoder.config.latent_channels
        layout = channels, config.width, config.depth, config.heads
        return ScaleTransformer(self.vocabulary, conditions, prefix, codebook.sides, *layout)

    @property
    def counts(self) -> tuple[int, ...]:
        """Of tokens, scale by scale."""
        return self.nets["autoencoder"].codebook.counts

    def loss(self, net: nn.Module, batch: Batch) -> Losses:
        """The mean cross-entropy of tokens, in nats."""
        prefix = self.training_prefix(batch, self.config.label_dropout)
        return {"loss": self._losses(net, self.training_tokens(batch), prefix).mean()}

    def token_losses(self, tokens: Tensor, prefix: Tensor, draws: Draws) -> Tensor:
        return self._losses(self.nets["transformer"], tokens, prefix)

    def _losses(self, net: nn.Module, tokens: Tensor, prefix: Tensor) -> Tensor:
        """(B,) mean over the tokens."""
        logits = net(prefix - self.vocabulary, self._told(tokens))
        return F.cross_entropy(logits.transpose(1, 2), tokens, reduction="none").mean(1)

    @torch.no_grad()
    def _told(self, tokens: Tensor) -> Tensor:
        return self.nets["autoencoder"].codebook.told(tokens)

    def _logits(self, ids: Tensor) -> Tensor:
        """Of all tokens, (B, N, V), of ids (B, prefix + N); those of a grid depend on coarser grids alone."""
        prefix, tokens = ids.split([ids.shape[1] - self.count, self.count], dim=1)
        return self.nets["transformer"](prefix - self.vocabulary, self._told(tokens))

    def _trajectory(self, request: Request) -> Trajectory:
        settings, draws, source = request.settings, Draws.of_seeds(request.seeds), request.conditions.source
        towards, away = self.prefixes(request)
        prefixes = (towards, away) if settings.guidance_scale != 1 and not torch.equal(towards, away) else (towards,)
        unknown = torch.full((len(towards), self.count), self.vocabulary, device=towards.device)
        known = unknown if source is None else (yield from self.known(source, draws))
        tokens, start = unknown.clone(), 0
        for scale, count in enumerate(self.counts):
            shown = self._preview(tokens, scale, source) if scale else None
            ids = torch.cat([torch.cat([prefix, tokens], dim=1) for prefix in prefixes])
            logits = (yield Call("transformer", {"ids": ids}, shown))[:, start : start + count]
            if len(prefixes) == 2:
                logits = guided(*logits.chunk(2), settings.scale_at(scale, len(self.counts)))
            noise = gumbel(draws.uniform(f"scale {scale}", (count, self.vocabulary)))
            own = known[:, start : start + count]
            found = drawn(truncated(logits, settings), noise)
            tokens[:, start : start + count] = torch.where(own < self.vocabulary, own, found)
            start += count
        return (yield from self.finish(tokens, source))

    def _preview(self, tokens: Tensor, scale: int, source: Source | None) -> Preview:
        """What the grids that are drawn say together."""
        so_far = tokens.clone()
        return Preview(scale / len(self.counts), lambda: self.finish(so_far, source))


def _give_tokeniser(family: Model) -> None:
    """For tests: what the data's tokens mean is the same whatever the seed, as of a trained tokeniser."""
    generator, net = torch.Generator().manual_seed(3), family.nets["autoencoder"]
    with torch.no_grad():
        for values in (*net.parameters(), net.codebook.codebook.codes):
            values.copy_(torch.randn(values.shape, generator=generator, device="cpu") / 3)


TINY = Tiny(
    {"width": 16, "depth": 2, "heads": 2},
    data=DataInfo(
        shape=(1, 69),
        medium="tokens",
        classes=("nought", "one", "two"),
        statistics={"vocabulary": (12.0,), "usage": (1.0,), "perplexity": (12.0,)},
        autoencoder=AutoencoderInfo(
            config=vae.Config(
                **vae.TINY.config, codebook={"name": "scales", "sides": (1, 2, 8), "size": 12}
            ).model_dump(mode="json"),
            data=DataInfo(shape=(1, 16, 16), classes=("nought", "one", "two")),
        ),
    ),
    settings={"guidance_scale": 2.0},
    prepare=_give_tokeniser,
)
