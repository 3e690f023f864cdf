"""GPT on the tokens of images, one after the other in reading order, class or text first (Esser et al. 2021; Sun et al.
2024, LlamaGen)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from components.data.dataset import Batch
from components.data.info import DataInfo
from components.data.randomness import Draws
from components.families.base import Losses, Phase, Tiny
from components.nets.token_transformer import CausalTokenTransformer
from components.sampling.requests import Request, Source
from components.sampling.trajectories import Call, Preview, Trajectory
from components.tokens.base import TokenConfig, TokenSampler
from components.tokens.continuation import Continuation
from components.tokens.draws import DrawSettings, RowDraws


class Config(TokenConfig):
    token_dropout: float = Field(0.1, ge=0, lt=1)  # share of tokens that what comes after is not told


class Model(TokenSampler):
    Config = Config
    Settings = DrawSettings
    Net = CausalTokenTransformer
    is_exact = True

    def __init__(self, config: Config, data: DataInfo):
        super().__init__(config, data)
        self.calls["transformer"] = Continuation(self.nets["transformer"])
        self.phases = (Phase("next_token", "transformer", self.loss, config.optimizer),)

    def loss(self, net: nn.Module, batch: Batch) -> Losses:
        """The mean cross-entropy of tokens, in nats."""
        tokens, prefix = self.training_tokens(batch), self.training_prefix(batch, self.config.label_dropout)
        hidden = batch.draws.uniform("token_dropout", (self.count,)) < self.config.token_dropout
        told = tokens.masked_fill(hidden, self.nets["transformer"].untold)
        return {"loss": self._losses(net, told, tokens, prefix).mean()}

    def token_losses(self, tokens: Tensor, prefix: Tensor, draws: Draws) -> Tensor:
        return self._losses(self.nets["transformer"], tokens, tokens, prefix)

    def _losses(self, net: nn.Module, told: Tensor, tokens: Tensor, prefix: Tensor) -> Tensor:
        """(B,) mean over the tokens; `told`: as those after them see them."""
        logits = net(torch.cat([prefix, told[:, :-1]], dim=1))[:, prefix.shape[1] - 1 :]
        return F.cross_entropy(logits.transpose(1, 2), tokens, reduction="none").mean(1)

    def _trajectory(self, request: Request) -> Trajectory:
        settings, draws, source = request.settings, Draws.of_seeds(request.seeds), request.conditions.source
        known = None if source is None else (yield from self.known(source, draws))
        towards, away = self.prefixes(request)
        is_guided = settings.guidance_scale != 1 and not torch.equal(towards, away)
        ids, times = (torch.cat([towards, away]), 2) if is_guided else (towards, 1)
        keys = draws.folds([f"token {place}" for place in range(self.count)]).repeat(times, 1).unbind(1)
        scales = torch.tensor([settings.scale_at(place, self.count) for place in range(self.count)], device="cpu")
        constant = RowDraws.constant(settings, len(towards), is_guided)
        position = torch.zeros(len(ids), dtype=torch.int64, device=ids.device)
        tokens: list[Tensor] = []
        for place in range(self.count):
            shown = self._preview(tokens, source) if place else None
            inputs = {"ids": ids, "position": position, "key": keys[place], "scale": scales[place].expand(len(ids))}
            token = yield Call("transformer", inputs | constant, shown, stateful=True)
            if known is not None:
                own = known[:, place].repeat(times)
                token = torch.where(own < self.vocabulary, own, token)
            tokens.append(token[: len(towards)])
            position, ids = position + ids.shape[1], token[:, None]
        return (yield from self.finish(torch.stack(tokens, 1), source))

    def _preview(self, tokens: list[Tensor], source: Source | None) -> Preview:
        """What is drawn so far, and its last token for the rest."""
        place = len(tokens)

        def start() -> Trajectory:
            so_far = [*tokens[:place], *tokens[place - 1 : place] * (self.count - place)]
            return self.finish(torch.stack(so_far, 1), source)

        return Preview(place / self.count, start)


TINY = Tiny({"width": 16, "depth": 2, "heads": 2}, data="tokens", settings={"top_k": 9, "guidance_scale": 2.0})
