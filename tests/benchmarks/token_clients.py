"""Clients of a GPT: what they ask for, and how many images a second an engine, the same net one request after the other
and transformers' `generate` answer them.

It needs no more than components do, so that it also runs where only torch is (tests/gpu).
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from components.data.info import AutoencoderInfo, DataInfo
from components.families import family_class
from components.families.base import Sampler
from components.sampling.engine import Engine
from components.sampling.requests import Conditions, Request
from components.sampling.trajectories import drive
from components.threads import in_passing
from tests.benchmarks.transformers_peer import Batches

CLIENTS = 16
CODES = {"latent_channels": 4, "widths": [32, 64], "codebook": {"name": "fsq", "levels": [5, 5, 5, 5]}}
MODEL = {"width": 128, "depth": 6, "heads": 4}
SCALES, COUNTS, SHARES = (1.0, 1.5, 3.0), (1, 1, 2, 4), (0.9, 1.0)
CPU = torch.device("cpu")


def sampler(model: Mapping = MODEL, side: int = 8, device: torch.device = CPU) -> Sampler:
    """A GPT of the `side` x `side` tokens of a digit, its weights initial: they cost as much as trained ones."""
    torch.manual_seed(0)
    images = DataInfo(shape=(1, 2 * side, 2 * side), classes=tuple(map(str, range(10))))
    of = AutoencoderInfo(config=CODES, data=images)
    data = DataInfo(shape=(1, side, side), medium="tokens", classes=images.classes, autoencoder=of)
    kind = family_class("gpt")
    made = kind(kind.Config(**model), data)
    made.nets.requires_grad_(False).eval().to(device)
    return made


def orders(
    made: Sampler, seed: int, scales: Sequence[float] = SCALES, shares: Sequence[float] = SHARES
) -> Iterator[Request]:
    """Requests of one to four images, guided or not, the same ones for all sides."""
    chance = random.Random(seed)
    while True:
        count = chance.choice(COUNTS)
        seeds = torch.tensor([chance.randrange(2**31) for _ in range(count)])
        settings = made.Settings(guidance_scale=chance.choice(scales), top_p=chance.choice(shares))
        yield Request(seeds, settings, Conditions(label=seeds % 10))


@dataclass(frozen=True)
class Span:
    """How long is counted, and how long clients ask before that, seconds."""

    seconds: float = 20.0
    warm: float = 3.0

    def begin(self) -> Tally:
        now = time.perf_counter()
        return Tally(now + self.warm, now + self.warm + self.seconds)


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


def answered(ask: Callable[[Request], None], orders_of: Callable[[int], Iterator[Request]], counted: Tally) -> None:
    """Counts what CLIENTS clients get, each with one request at a time, of its own orders by its number; `ask` returns
    once one is done."""
    lock = threading.Lock()

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


def asked_by_clients(
    engine: Engine,
    made: Sampler,
    orders_of: Callable[[int], Iterator[Request]],
    span: Span = Span(),
    device: torch.device = CPU,
) -> float:
    """Images a second, as `answered`, of an engine."""

    def ask(request: Request) -> None:
        moved = request.to(device)
        engine.submit(lambda: made.trajectory(moved), rows=2 * len(request.seeds)).result(600)

    counted = span.begin()
    answered(ask, orders_of, counted)
    return counted.rate


@dataclass(frozen=True)
class Bench:
    """One sampler and the ways it is asked: `calls` are its nets', perhaps recorded, called with `buckets` rows."""

    made: Sampler
    calls: Mapping[str, Callable[..., Any]]
    buckets: Sequence[int] = ()
    device: torch.device = CPU
    span: Span = Span()

    def together(self, scales: Sequence[float] = SCALES, shares: Sequence[float] = SHARES) -> tuple[float, float, int]:
        """Images a second of CLIENTS clients at one engine, each with one request at a time; rows of a forward;
        bytes of the cache."""
        rows: list[int] = []
        engine = Engine(self.calls, buckets=self.buckets, on_forward=lambda forward: rows.append(forward.rows))

        def of_client(number: int) -> Iterator[Request]:
            return orders(self.made, number, scales, shares)

        rate = asked_by_clients(engine, self.made, of_client, self.span, self.device)
        taken = engine.load().cache_bytes
        engine.stop(timeout=60)
        assert rows, "no forward was made"
        return rate, sum(rows) / len(rows), taken

    def one_by_one(self) -> float:
        """Images a second of the same requests, one after the other."""
        counted, streams = self.span.begin(), [orders(self.made, number) for number in range(CLIENTS)]
        turn = 0
        while time.perf_counter() < counted.end:
            request = next(streams[turn % CLIENTS])
            drive(self.made.trajectory(request.to(self.device)), self.calls).cpu()
            counted.add(len(request.seeds))
            turn += 1
        return counted.rate

    def by_generate(self, shares: Sequence[float]) -> tuple[float, float]:
        """Images a second of the same clients, unguided, of a server by transformers' `generate`; rows of its
        batches."""
        made, net = self.made, self.made.nets["transformer"]

        def finish(tokens: Tensor) -> Tensor:
            return made.autoencoder.bounded(made.nets["autoencoder"].decode_tokens(tokens.view(-1, *made.sides)))

        server = in_passing(lambda: Batches(net, finish))

        def ask(request: Request) -> None:
            prefix, _ = made.prefixes(request.to(self.device))
            images = server.submit(prefix, request.settings.top_p).result(600)
            assert images.shape == (len(request.seeds), *made.autoencoder.data.shape)

        counted = self.span.begin()
        answered(ask, lambda number: orders(made, number, (1.0,), shares), counted)
        server.stop()
        return counted.rate, sum(server.rows) / len(server.rows)

    def against_generate(self) -> dict[str, float]:
        """Ours over the peer's, for requests of mixed settings and of one, and what they are made of."""
        told = {}
        for name, shares in {"mixed": SHARES, "one_setting": SHARES[:1]}.items():
            ours, rows, _ = self.together((1.0,), shares)
            theirs, their_rows = self.by_generate(shares)
            told |= {f"{name}_ratio": ours / theirs, f"{name}_ours": ours, f"{name}_generate": theirs}
            told |= {f"{name}_rows_per_forward": rows, f"{name}_rows_per_batch": their_rows}
        return {name: round(value, 2) for name, value in told.items()}
