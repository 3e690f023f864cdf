"""Tiny families, data and batches that the tests of components share."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from components.data.dataset import Batch, batches
from components.data.info import AutoencoderInfo, DataInfo
from components.data.media import medium
from components.diffusion.solvers import Solver
from components.families import family_class, vae
from components.families.base import Family, Tiny

CAPTIONS = ("a red cat", "a dog", "two birds", "été")
CAPTION_LENGTH = 12
IMAGES = DataInfo(shape=(1, 16, 16), classes=("nought", "one", "two"))
LATENTS = DataInfo(
    shape=(2, 8, 8),
    classes=IMAGES.classes,
    statistics={"channel_mean": (0.3, -0.2), "channel_std": (1.5, 0.8)},
    autoencoder=AutoencoderInfo(config=vae.Config(**vae.TINY.config).model_dump(mode="json"), data=IMAGES),
)
TOKENS = DataInfo(
    shape=(1, 8, 8),
    medium="tokens",
    classes=IMAGES.classes,
    statistics={"vocabulary": (12.0,), "usage": (1.0,), "perplexity": (12.0,)},
    autoencoder=AutoencoderInfo(
        config=vae.Config(**vae.TINY.config, codebook={"name": "fsq", "levels": [3, 4]}).model_dump(mode="json"),
        data=IMAGES,
    ),
)
DATA = {  # by what a family's `TINY` calls them
    "images": IMAGES,
    "captioned images": IMAGES.model_copy(update={"caption_length": CAPTION_LENGTH}),
    "latents": LATENTS,
    "tokens": TOKENS,
    "captioned latents": LATENTS.model_copy(update={"caption_length": CAPTION_LENGTH}),
}


def tiny(name: str) -> Tiny:
    """The test configuration that a family's file brings."""
    return importlib.import_module(family_class(name).__module__).TINY


def tiny_data(name: str) -> DataInfo:
    """The data set that a family's tiny configuration takes."""
    data = tiny(name).data
    return data if isinstance(data, DataInfo) else DATA[data]


@contextlib.contextmanager
def one_exact_thread() -> Iterator[None]:
    """Deterministic algorithms on one thread, the fastest for nets as small as these."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


def build(name: str, seed: int = 0, data: DataInfo | None = None, **changes) -> Family:
    """A tiny family with initial weights of its seed, for its usual data or other."""
    kind, example = family_class(name), tiny(name)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        family = kind(kind.Config(**{**example.config, **changes}), data or tiny_data(name))
        if example.prepare is not None:
            example.prepare(family)
        return family


class Rows:
    """A data set in memory, in the place of components.data.Dataset."""

    def __init__(self, data: DataInfo, count: int = 20):
        generator = torch.Generator().manual_seed(7)
        label = torch.arange(count) % len(data.classes)
        if data.medium == "tokens":
            tokens = torch.randint(0, 12, (count, *data.shape), generator=generator)
            self.columns = {"tokens": tokens.to(torch.uint16), "label": label}
        elif data.autoencoder is None:
            of = medium(data.medium, rate=data.rate)
            low, high = map(int, of.value_range)
            rows = torch.randint(low, high + 1, (count, *data.shape), generator=generator, dtype=of.stored_dtype())
            self.columns = {of.column: rows, "label": label}
        else:
            mean, std = torch.randn(2, count, *data.shape, generator=generator)
            self.columns = {"mean": mean, "std": std.exp() / 10, "label": label}
            if data.flips:
                self.columns |= {"mean_flipped": mean.flip(-1) + 1, "std_flipped": std.flip(-1).exp() / 10}
        if data.medium == "audio" and data.autoencoder is None:  # clips of any length, the longest a whole row
            ends = 1 + torch.arange(count) * data.shape[-1] // count
            rows[torch.arange(data.shape[-1]).expand_as(rows) >= ends[:, None, None]] = 0
        if data.speakers:
            self.columns["speaker"] = torch.arange(count) // 2 % len(data.speakers)
        if data.crops:  # files larger than the rows, more or less of which is cut off at each side
            raw = torch.randint(10, 40, (count, 2), generator=generator)
            self.columns |= {"raw_size": raw, "crop": torch.randint(0, 5, (count, 4), generator=generator)}
        if data.caption_length:
            texts = [CAPTIONS[row % len(CAPTIONS)].encode().ljust(data.caption_length, b"\0") for row in range(count)]
            self.columns["caption"] = torch.tensor([list(text) for text in texts], dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self.columns["label"])

    def take(self, rows: Tensor) -> dict[str, Tensor]:
        return {name: values[rows] for name, values in self.columns.items()}


def stream(name: str, batch_size: int = 6, **where) -> Iterator[Batch]:
    """Training batches for a family; `where` are rank, world, seed and start."""
    return batches(Rows(tiny_data(name)), batch_size, **where)


def no_wrap(net: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
    return net, optimizer


def copied(net: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in net.state_dict().items()}


def assert_same(left: object, right: object, where: str = "") -> None:
    """Bit for bit, through mappings and sequences."""
    if isinstance(left, Tensor):
        assert left.dtype == right.dtype, where
        assert torch.equal(left, right), where
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left:
            assert_same(left[key], right[key], f"{where}.{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), where
        for place, (one, other) in enumerate(zip(left, right, strict=True)):
            assert_same(one, other, f"{where}[{place}]")
    else:
        assert left == right, where


def solved(solver: Solver, denoise: Callable[[Tensor, float], Tensor]) -> Tensor:
    """Where a solver ends, its questions answered by a closed form."""
    try:
        x, sigma = next(solver)
        while True:
            x, sigma = solver.send(denoise(x, sigma))
    except StopIteration as stop:
        return stop.value
