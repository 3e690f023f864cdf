"""A GPT of this project as a causal language model of transformers, on the same weights: what `generate` is measured
on.

Qwen3's blocks are those of components/nets/transformer.py: RMSNorm, normalised queries and keys, rotary positions in
halves, SwiGLU, no biases. Two of its modules are exchanged: the rotary angles, since tokens have places on a grid, and
the head, since ids of conditions are told and never drawn.
"""

from __future__ import annotations

import functools
import queue
import threading
from concurrent.futures import Future
from typing import Any

import torch
from torch import Tensor, nn

from components.nets.rotary import rotary_angles
from components.nets.token_transformer import CausalTokenTransformer

PROJECTIONS = {
    "self_attn.q_proj": "attention.to_q",
    "self_attn.k_proj": "attention.to_k",
    "self_attn.v_proj": "attention.to_v",
    "self_attn.o_proj": "attention.to_out",
    "self_attn.q_norm": "attention.norm_q",
    "self_attn.k_norm": "attention.norm_k",
    "input_layernorm": "norm_attention",
    "post_attention_layernorm": "norm_feed",
    "mlp.gate_proj": "feed.gate",
    "mlp.up_proj": "feed.value",
    "mlp.down_proj": "feed.out",
}  # of a layer of Qwen3 -> of our block


class GridAngles(nn.Module):
    """In the place of Qwen3's rotary embedding: positions (B, N) -> cosine and sine (B, N, head_dim) of their
    places."""

    def __init__(self, net: CausalTokenTransformer):
        super().__init__()
        angles = rotary_angles(net.places, net.trunk.head_dim, net.trunk.base)
        self.register_buffer("angles", torch.cat([angles, angles], dim=1), persistent=False)

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        angles = self.angles[position_ids]
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


def peer_of(net: CausalTokenTransformer) -> Any:
    """The same net as a Qwen3ForCausalLM, ids of conditions and tokens in, logits of tokens out."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    trunk = net.trunk
    config = Qwen3Config(
        vocab_size=net.untold + 1,
        hidden_size=net.embed.embedding_dim,
        intermediate_size=trunk.blocks[0].feed.gate.out_features,
        num_hidden_layers=len(trunk.blocks),
        num_attention_heads=trunk.heads,
        num_key_value_heads=trunk.heads,
        head_dim=trunk.head_dim,
        max_position_embeddings=len(net.places),
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    peer = Qwen3ForCausalLM(config)
    peer.lm_head, peer.model.rotary_emb = net.head, GridAngles(net)
    peer.model.embed_tokens.load_state_dict(net.embed.state_dict())
    peer.model.norm.load_state_dict(trunk.norm.state_dict())
    for layer, block in zip(peer.model.layers, trunk.blocks, strict=True):
        for theirs, ours in PROJECTIONS.items():
            layer.get_submodule(theirs).load_state_dict(block.get_submodule(ours).state_dict())
    return peer.to(net.places.device).requires_grad_(False).eval()


@torch.inference_mode()
def refuse_other_answers(net: CausalTokenTransformer, peer: Any) -> None:
    """Raises AssertionError unless both tell the same of the same ids, whole and with what `generate` keeps."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, net.vocabulary, (3, net.length), generator=generator).to(net.places.device)
    ids[:, 0] = net.vocabulary
    torch.testing.assert_close(peer(ids).logits, net(ids), rtol=1e-4, atol=1e-4)
    greedy = peer.generate(ids[:, :1], do_sample=False, max_new_tokens=net.num_tokens, pad_token_id=0)
    wanted = ids[:, :1]
    for _ in range(net.num_tokens):
        wanted = torch.cat([wanted, net(wanted)[:, -1].argmax(1, keepdim=True)], dim=1)
    assert torch.equal(greedy, wanted), "generate draws other tokens from the same weights"


class Batches:
    """Serves by `generate` in a thread: what waits when a batch is done is the next one, grouped by its setting, as a
    server that batches whole requests does. `finish`: tokens (B, N) -> rows."""

    def __init__(self, net: CausalTokenTransformer, finish: Any):
        self._net, self._finish, self._peer = net, finish, peer_of(net)
        refuse_other_answers(net, self._peer)
        self._waiting: queue.SimpleQueue = queue.SimpleQueue()
        self.rows: list[int] = []  # of each batch
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def submit(self, prefix: Tensor, top_p: float) -> Future:
        """The rows of prefixes (B, 1), once they are drawn."""
        answer: Future = Future()
        self._waiting.put((prefix, top_p, answer))
        return answer

    def stop(self) -> None:
        self._waiting.put(None)
        self._thread.join(timeout=60)

    def _serve(self) -> None:
        while True:
            asked = [self._waiting.get()]
            while not self._waiting.empty():
                asked.append(self._waiting.get())
            if None in asked:
                return
            for top_p in dict.fromkeys(top_p for _, top_p, _ in asked):
                self._answer([(prefix, answer) for prefix, wanted, answer in asked if wanted == top_p], top_p)

    @torch.inference_mode()
    def _answer(self, group: list[tuple[Tensor, Future]], top_p: float) -> None:
        prefixes, answers = zip(*group, strict=True)
        try:
            rows = self._drawn(torch.cat(prefixes), top_p)
        except Exception as error:  # a client would wait for ever
            for answer in answers:
                answer.set_exception(error)
            return
        self.rows.append(len(rows))
        for answer, part in zip(answers, rows.split([len(prefix) for prefix in prefixes]), strict=True):
            answer.set_result(part)

    def _drawn(self, prefix: Tensor, top_p: float) -> Tensor:
        draw = functools.partial(self._peer.generate, do_sample=True, top_k=0, top_p=top_p, pad_token_id=0)
        ids = draw(prefix, attention_mask=torch.ones_like(prefix), max_new_tokens=self._net.num_tokens)
        return self._finish(ids[:, prefix.shape[1] :])
