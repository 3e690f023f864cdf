"""What serving is compared with: the same weights in diffusers' networks and scheduler behind Ray Serve, one pipeline
call for each request, and one for each batch of `@serve.batch`. All sides run in one Serve and answer the same JSON."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from ray import serve
from starlette.requests import Request

from components.artifacts import run_folder
from components.data.media.image import MEDIUM
from components.families import family_name
from components.families.base import Sampler
from components.training.ema import copy_of
from components.training.loop import State
from infra.config import ClusterConfig, ServeConfig
from infra.ray_cluster import ray_session
from infra.serving import ray_serve
from infra.serving.model_store import ModelStore
from pipelines.serve import ROOT
from pipelines.support import params, paths
from tests.benchmarks.diffusers_peer import Theirs, let_torchvision_import, their_weights
from tests.benchmarks.serving_load import PATH
from tests.infra.champion import untrained
from tests.infra.local import free_port
from tests.infra.serving_helpers import write_promoted

MAX_BATCH, WAIT = 16, 0.02  # of @serve.batch: rows, and seconds that a batch waits for more
ONGOING = 1000
ACTOR = {"num_cpus": 1}


class Pipeline:
    """Class-conditional latent diffusion as a diffusers pipeline does it: one scheduler and number of steps a call."""

    def __init__(self, folder: str):
        let_torchvision_import()
        from diffusers import FlowMatchEulerDiscreteScheduler

        torch.set_num_threads(os.cpu_count())
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        family = run_folder.load(Path(folder)).family
        self.family, self.null = family, family.num_classes
        self.unet = Theirs(family)
        self.unet.load_state_dict(their_weights(family))
        self.unet.requires_grad_(False).eval().to(self.device)
        self.vae = autoencoder_of(family).to(self.device)
        self.scheduler = FlowMatchEulerDiscreteScheduler()
        like = torch.zeros(1, *family.data.shape, device=self.device)
        self.mean, self.std = family.space.moments_as(like)

    @torch.inference_mode()
    def __call__(self, orders: list[dict]) -> list[bytes]:
        """Images of orders of one number of steps."""
        self.scheduler.set_timesteps(orders[0]["num_inference_steps"], device=self.device)
        noise = [torch.Generator().manual_seed(order["seed"]) for order in orders]
        x = torch.stack([torch.randn(self.family.data.shape, generator=one) for one in noise]).to(self.device)
        labels = torch.tensor([int(order["prompt"]) for order in orders], device=self.device)
        scales = torch.tensor([order["guidance_scale"] for order in orders], device=self.device)[:, None, None, None]
        guided = bool((scales != 1).any())
        for time in self.scheduler.timesteps:
            rows = torch.cat([x, x]) if guided else x
            both = torch.cat([labels, torch.full_like(labels, self.null)]) if guided else labels
            velocity = self.unet(rows, time, both)
            if guided:
                towards, away = velocity.chunk(2)
                velocity = away + scales * (towards - away)
            x = self.scheduler.step(velocity, time, x).prev_sample
        images = self.vae.decode(x * self.std + self.mean).sample
        return [MEDIUM.encode(image, "png") for image in images]


def autoencoder_of(family) -> torch.nn.Module:
    """diffusers' class of the family's autoencoder, with its weights."""
    from diffusers import AutoencoderKL

    config, images = family.autoencoder.config, family.autoencoder.data
    theirs = AutoencoderKL(
        in_channels=images.shape[0],
        out_channels=images.shape[0],
        down_block_types=("DownEncoderBlock2D",) * len(config.widths),
        up_block_types=("UpDecoderBlock2D",) * len(config.widths),
        block_out_channels=config.widths,
        layers_per_block=config.layers,
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_groups,
    )
    theirs.load_state_dict(family.nets["autoencoder"].state_dict())
    return theirs.requires_grad_(False).eval()


def answer(image: bytes) -> dict:
    return {"data": [{"b64_json": base64.b64encode(image).decode()}]}


@serve.deployment(max_ongoing_requests=ONGOING, ray_actor_options=ACTOR)
class PerRequest:
    """One call for each request, one after the other: each uses all cores."""

    def __init__(self, folder: str):
        self.pipeline, self.turn = Pipeline(folder), asyncio.Lock()

    async def __call__(self, request: Request) -> dict:
        order = await request.json()
        async with self.turn:
            (image,) = await asyncio.to_thread(self.pipeline, [order])
        return answer(image)


@serve.deployment(max_ongoing_requests=ONGOING, ray_actor_options=ACTOR)
class Batched:
    """One call for each number of steps in a batch: a pipeline takes no more than one."""

    def __init__(self, folder: str):
        self.pipeline = Pipeline(folder)

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=WAIT)
    async def make(self, orders: list[dict]) -> list[bytes]:
        made: dict[int, bytes] = {}
        for steps in {order["num_inference_steps"] for order in orders}:
            places = [place for place, order in enumerate(orders) if order["num_inference_steps"] == steps]
            images = await asyncio.to_thread(self.pipeline, [orders[place] for place in places])
            made |= dict(zip(places, images, strict=True))
        return [made[place] for place in range(len(orders))]

    async def __call__(self, request: Request) -> dict:
        return answer(await self.make(await request.json()))


def write_untrained(folder: Path, family: Sampler | None = None) -> None:
    """A sampler with initial weights, by default the demo's, as a run folder."""
    family = family or untrained()
    average = copy_of(family.nets)
    provenance = run_folder.Provenance(data="none", code="none", job="none", seed=0, step=0)
    state = State(step=0, nets=average, optimizers={}, average=average)
    run_folder.write(folder, family_name(type(family)), family, state, provenance)


@contextlib.contextmanager
def served(**peers: serve.Deployment) -> Iterator[tuple[dict[str, str], str]]:
    """Addresses of `ours` and of each peer, all with the same weights, and whether these are the champion's."""
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        root = Path(temporary)
        is_champion = (ROOT / paths.PROMOTED).is_file()
        if is_champion:
            model_store = ModelStore(root=str(ROOT), cache=str(root / "served"))
        else:
            write_untrained(root / "runs/ldm")
            model_store = ModelStore(root=str(write_promoted(root, "runs/ldm", "1")))
        stack.enter_context(ray_session.session(ClusterConfig(num_workers=4), ROOT))
        config = ServeConfig(port=free_port(), max_steps=50, watch_every=0)
        stack.callback(ray_serve.stop)
        model = ray_serve.start(model_store, config)
        host = f"http://127.0.0.1:{config.port}"
        for name, peer in peers.items():
            serve.run(peer.bind(model.folder), name=name, route_prefix=f"/{name}")
        yield {"ours": host + PATH} | {name: f"{host}/{name}" for name in peers}, sampler_name(is_champion)


def sampler_name(is_champion: bool) -> str:
    return "champion" if is_champion else f"untrained, {params.DEFAULT}"
