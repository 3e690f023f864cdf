"""Images a second of one engine that serves 16 clients of a GPT, with mixed lengths of what they ask for and mixed
settings, against the same net answering one request after the other. No HTTP on either side.

    python -m tests.benchmarks.serve_tokens

Where transformers is installed (the extra `text`), also against its own `generate` on equal weights, which answer the
same (transformers_peer.py): all that waits is one batch, if its setting is the same. Requests are unguided there, since
`generate` guides by a second forward of its own; with mixed settings and, as suits whole batches best, with one.
"""

from __future__ import annotations

import importlib.util
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from components.data.info import AutoencoderInfo, DataInfo
from components.families import family_class
from components.families.base import Sampler
from components.sampling.engine import Engine
from components.sampling.requests import Conditions, Request
from components.sampling.trajectories import drive
from components.threads import in_passing
from tests.benchmarks.common import as_a_worker, emit
from tests.benchmarks.transformers_peer import Batches

CLIENTS, SECONDS, WARM = 16, 20.0, 3.0
CODES = {"latent_channels": 4, "widths": [32, 64], "codebook": {"name": "fsq", "levels": [5, 5, 5, 5]}}
MODEL = {"width": 128, "depth": 6, "heads": 4}
SCALES, COUNTS, SHARES = (1.0, 1.5, 3.0), (1, 1, 2, 4), (0.9, 1.0)


def sampler() -> Sampler:
    """A GPT of the 64 tokens of a digit, its weights initial: they cost as much as trained ones."""
    torch.manual_seed(0)
    images = DataInfo(shape=(1, 16, 16), classes=tuple(map(str, range(10))))
    of = AutoencoderInfo(config=CODES, data=images)
    data = DataInfo(shape=(1, 8, 8), medium="tokens", classes=images.classes, autoencoder=of)
    kind = family_class("gpt")
    made = kind(kind.Config(**MODEL), data)
    made.nets.requires_grad_(False).eval()
    return made


def orders(
    made: Sampler, seed: int, scales: Sequence[float] = SCALES, shares: Sequence[float] = SHARES
) -> Iterator[Request]:
    """Requests of one to four images, guided or not, the same ones for both sides."""
    chance = random.Random(seed)
    while True:
        count = chance.choice(COUNTS)
        seeds = torch.tensor([chance.randrange(2**31) for _ in range(count)])
        settings = made.Settings(guidance_scale=chance.choice(scales), top_p=chance.choice(shares))
        yield Request(seeds, settings, Conditions(label=seeds % 10))


@dataclass
class Tally:
    """Images that were finished between `start` and `end`."""

    start: float
    end: float
    images: int = 0

    def add(self, count: int) -> None:
        self.images += count * (self.start <= time.perf_counter() < self.end)

    @property
    def rate(self) -> float:
        return self.images / (self.end - self.start)


def tally() -> Tally:
    now = time.perf_counter()
    return Tally(now + WARM, now + WARM + SECONDS)


def asked_by_clients(engine: Engine, made: Sampler, orders_of: Callable[[int], Iterator[Request]]) -> Tally:
    """As `answered`, by an engine."""

    def ask(request: Request) -> None:
        engine.submit(lambda: made.trajectory(request), rows=2 * len(request.seeds)).result(600)

    return answered(ask, orders_of)


def answered(ask: Callable[[Request], None], orders_of: Callable[[int], Iterator[Request]]) -> Tally:
    """What CLIENTS clients get, each with one request at a time, of its own orders by its number; `ask` returns once
    one is done."""
    counted, lock = tally(), threading.Lock()

    def client(number: int) -> None:
        wanted = orders_of(number)
        while time.perf_counter() < counted.end:
            request = next(wanted)
            ask(request)
            with lock:
                counted.add(len(request.seeds))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return counted


def together(
    made: Sampler, scales: Sequence[float] = SCALES, shares: Sequence[float] = SHARES
) -> tuple[float, float, int]:
    """Images a second of CLIENTS clients at one engine, each with one request at a time; rows of a forward;
    bytes of the cache."""
    rows: list[int] = []
    engine = Engine(made.calls, on_forward=lambda forward: rows.append(forward.rows))
    counted = asked_by_clients(engine, made, lambda number: orders(made, number, scales, shares))
    taken = engine.load().cache_bytes
    engine.stop(timeout=60)
    assert rows, "no forward was made"
    return counted.rate, sum(rows) / len(rows), taken


def one_by_one(made: Sampler) -> float:
    """Images a second of the same requests, one after the other."""
    counted, streams = tally(), [orders(made, number) for number in range(CLIENTS)]
    turn = 0
    while time.perf_counter() < counted.end:
        request = next(streams[turn % CLIENTS])
        drive(made.trajectory(request), made.calls)
        counted.add(len(request.seeds))
        turn += 1
    return counted.rate


def by_generate(made: Sampler, shares: Sequence[float]) -> tuple[float, float]:
    """Images a second of the same clients, unguided, of a server by transformers' `generate`; rows of its batches."""
    net = made.nets["transformer"]

    def finish(tokens: Tensor) -> Tensor:
        return made.autoencoder.bounded(made.nets["autoencoder"].decode_tokens(tokens.view(-1, *made.sides)))

    server = in_passing(lambda: Batches(net, finish))

    def ask(request: Request) -> None:
        prefix, _ = made.prefixes(request)
        images = server.submit(prefix, request.settings.top_p).result(600)
        assert images.shape == (len(request.seeds), *made.autoencoder.data.shape)

    counted = answered(ask, lambda number: orders(made, number, (1.0,), shares))
    server.stop()
    return counted.rate, sum(server.rows) / len(server.rows)


def against_generate(made: Sampler) -> dict[str, float]:
    """Ours over the peer's, for requests of mixed settings and of one, and what they are made of."""
    told = {}
    for name, shares in {"mixed": SHARES, "one_setting": SHARES[:1]}.items():
        ours, rows, _ = together(made, (1.0,), shares)
        theirs, their_rows = by_generate(made, shares)
        told |= {f"{name}_ratio": ours / theirs, f"{name}_ours": ours, f"{name}_generate": theirs}
        told |= {f"{name}_rows_per_forward": rows, f"{name}_rows_per_batch": their_rows}
    return {name: round(value, 2) for name, value in told.items()}


def main(argv: list[str] | None = None) -> None:
    as_a_worker()
    made = in_passing(sampler)  # so that no side meets another one's team of threads
    alone = in_passing(lambda: one_by_one(made))
    rate, rows, taken = together(made)
    emit(
        "serve_tokens",
        round(rate / alone, 2),
        f"images/s of one engine with {CLIENTS} clients / of one request after the other",
        ">= 3",
        images_per_s=round(rate, 2),
        one_by_one=round(alone, 2),
        rows_per_forward=round(rows, 1),
        cache_mib=round(taken / 2**20, 1),
    )
    if importlib.util.find_spec("transformers") is None:
        print("serve_tokens_vs_generate: left out, transformers is not installed")
        return
    told = against_generate(made)
    what = (
        f"images/s of one engine with {CLIENTS} clients / of transformers' generate in batches, equal weights, unguided"
    )
    emit("serve_tokens_vs_generate", told["mixed_ratio"], what, ">= 1.5", **told)


if __name__ == "__main__":
    main()
