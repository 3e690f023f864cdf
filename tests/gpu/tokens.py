"""A GPT's tokens on this device: an engine with 16 clients, with CUDA graphs by bucket and launched; the same requests
one after the other, launched; and, where transformers can be imported, its `generate` on equal weights. In float32."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch

from components.cuda_graphs import replayed
from components.sampling.batching import powers_of_two
from tests.benchmarks import token_clients
from tests.benchmarks.token_clients import Bench, Span
from tests.gpu.part import Part

SIZES = {  # the model and the tokens of a side; seconds that are counted and that come before
    "demo": (token_clients.MODEL, 8, Span(4.0, 1.5)),
    "middle": ({"width": 512, "depth": 12, "heads": 8}, 16, Span(5.0, 2.0)),
}
TOY = ({"width": 16, "depth": 1, "heads": 2}, 4, Span(1.0, 0.2))


def run(part: Part) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    peer = importlib.util.find_spec("transformers") is not None and not part.toy  # begun for longer than it is measured
    for name, size in SIZES.items():
        model, side, span = TOY if part.toy else size
        made = token_clients.sampler(model, side, part.device)
        launched = bench(part, made, made.calls, span)
        graphs = bench(part, made, replayed(made.calls), span) if part.on_gpu else launched
        needs = 2 * (span.seconds + span.warm)
        part.measure(f"{name}.graphs", lambda graphs=graphs: clients(graphs), needs=needs)
        part.measure(f"{name}.launched", lambda launched=launched: clients(launched), needs=needs)
        part.measure(f"{name}.one_by_one", launched.one_by_one, needs=needs)
        if peer:
            part.measure(f"{name}.against_generate", graphs.against_generate, needs=2 * needs)


def bench(part: Part, made: Any, calls: dict[str, Callable[..., Any]], span: Span) -> Bench:
    return Bench(made, calls, powers_of_two(64) if part.on_gpu else (), part.device, span)


def clients(of: Bench) -> dict[str, float]:
    """Mixed requests, guided ones among them."""
    rate, rows, taken = of.together()
    return {"images_per_second": rate, "rows_per_forward": rows, "cache_mib": taken / 2**20}
