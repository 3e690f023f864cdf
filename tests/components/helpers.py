"""Tiny families, data and batches that the tests of components share."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from components.data.dataset import Batch, batches
from components.families import FAMILIES
from components.families.base import AutoencoderInfo, DataInfo, Family

IMAGES = DataInfo(shape=(1, 16, 16), classes=("nought", "one", "two"))
VAE = {"latent_channels": 2, "widths": [4, 8]}
LATENTS = DataInfo(
    shape=(2, 8, 8),
    classes=IMAGES.classes,
    statistics={"channel_mean": (0.3, -0.2), "channel_std": (1.5, 0.8)},
    autoencoder=AutoencoderInfo(config=VAE, data=IMAGES),
)
UNET = {"widths": (8, 16), "attention": (True, False), "layers": 1, "heads": (2, 2), "depth": (1, 1), "context_dim": 8}
TEXT = {
    "vocab_size": 258,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
    "projection_dim": 6,
    "bos_token_id": 256,
    "eos_token_id": 257,
}
# a tokenizer of single letters; what is none is left out
LETTERS = json.dumps(
    {
        "version": "1.0",
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": False},
        "model": {"type": "WordLevel", "vocab": {chr(code): code for code in range(97, 123)}, "unk_token": "a"},
    }
).encode()
STABLE_DIFFUSION = {
    "backbone": {**UNET, "added": (6, 6, 4)},
    "refiner": {**UNET, "added": (6, 5, 4)},
    "text": [
        {"config": TEXT, "pooled": True, "penultimate": True, "length": 16, "pad": 0, "tokenizer_bytes": len(LETTERS)}
    ],
    "latent_mean": (0.1, 0.0),
    "latent_std": (1.2, 0.9),
    "optimizer": {"learning_rate": 0.01},
}
TINY: dict[str, tuple[dict, DataInfo]] = {  # a small config and its data, for every family
    "vae": (VAE, IMAGES),
    "judge": ({"width": 4, "feature_dim": 6}, IMAGES),
    "latent_diffusion": ({"backbone": {"widths": (8, 16), "heads": 2, "context_dim": 8}}, LATENTS),
    "stable_diffusion": (STABLE_DIFFUSION, LATENTS.model_copy(update={"caption_length": 12})),
    "dcgan": ({"latent_dim": 5, "width": 4}, IMAGES),
    "wgan": ({"latent_dim": 5, "width": 4, "num_critic_steps": 2}, IMAGES),
    "wgan_gp": ({"latent_dim": 5, "width": 4, "num_critic_steps": 2}, IMAGES),
    "cgan": ({"latent_dim": 5, "width": 4}, IMAGES),
    "sagan": ({"latent_dim": 5, "width": 4}, IMAGES),
    "biggan": ({"latent_dim": 7, "width": 4, "embedding_dim": 3}, IMAGES),
    "bigbigan": ({"latent_dim": 7, "width": 4}, IMAGES),
    "stylegan2": ({"latent_dim": 5, "width": 4, "style_dim": 6, "mapping_layers": 2, "penalise_every": 2}, IMAGES),
    "r3gan": ({"latent_dim": 5, "width": 4, "blocks": 1, "group_size": 2, "embedding_dim": 3}, IMAGES),
}


@contextlib.contextmanager
def one_exact_thread() -> Iterator[None]:
    """Deterministic algorithms on one thread, the fastest for nets as small as these."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


CAPTIONS = ("a red cat", "a dog", "two birds", "été")
CAPTION_LENGTH = 12


def build(name: str, seed: int = 0, data: DataInfo | None = None, **changes) -> Family:
    """A tiny family with initial weights of its seed, for its usual data or other."""
    config, usual = TINY[name]
    data = data or usual
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        family = FAMILIES[name](FAMILIES[name].Config(**{**config, **changes}), data)
        if name == "stable_diffusion":
            as_imported(family)
        return family


def as_imported(family: Family) -> None:
    """Text encoders that are the same whatever the seed, and a tokenizer, as an imported model has them."""
    text = family.nets["text"]
    text.tokenizer_0.copy_(torch.frombuffer(bytearray(LETTERS), dtype=torch.uint8))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in text.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)


class Rows:
    """A data set in memory, in the place of components.data.Dataset."""

    def __init__(self, data: DataInfo, count: int = 20):
        generator = torch.Generator().manual_seed(7)
        label = torch.arange(count) % len(data.classes)
        if data.autoencoder is None:
            image = torch.randint(0, 256, (count, *data.shape), generator=generator, dtype=torch.uint8)
            self.columns = {"image": image, "label": label}
        else:
            mean, std = torch.randn(2, count, *data.shape, generator=generator)
            self.columns = {"mean": mean, "std": std.exp() / 10, "label": label}
            if data.flips:
                self.columns |= {"mean_flipped": mean.flip(-1) + 1, "std_flipped": std.flip(-1).exp() / 10}
        if data.caption_length:
            texts = [CAPTIONS[row % len(CAPTIONS)].encode().ljust(data.caption_length, b"\0") for row in range(count)]
            self.columns["caption"] = torch.tensor([list(text) for text in texts], dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self.columns["label"])

    def take(self, rows: Tensor) -> dict[str, Tensor]:
        return {name: values[rows] for name, values in self.columns.items()}


def stream(name: str, batch_size: int = 6, **where) -> Iterator[Batch]:
    """Training batches for a family; `where` are rank, world, seed and start."""
    return batches(Rows(TINY[name][1]), batch_size, **where)


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
