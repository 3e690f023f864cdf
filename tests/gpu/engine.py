"""The engine on this device: a step's time by rows, what the engine adds to the network at 16 rows, CUDA graphs by
bucket, and 16 clients who ask for different things."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from components.cuda_graphs import replayed
from components.evaluation import generation
from components.families import latent_diffusion
from components.sampling.batching import powers_of_two
from components.sampling.engine import Engine
from components.sampling.tasks import Forward
from components.sampling.trajectories import drive
from tests.benchmarks.rates import settle
from tests.gpu import models
from tests.gpu.models import DEMO, MIDDLE
from tests.gpu.part import Part

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
NUM_IMAGES, STEPS = 16, 25
CLIENTS, ASKED = 16, 3  # and how often each asks
KINDS = (  # what clients ask for
    {"solver": "ddim", "num_inference_steps": 20, "guidance_scale": 1.0},
    {"solver": "dpmpp_2m", "num_inference_steps": 15, "guidance_scale": 2.0},
    {"solver": "heun", "num_inference_steps": 10, "guidance_scale": 1.5},
    {"solver": "ddpm", "num_inference_steps": 25, "guidance_scale": 3.0},
)
Net = Callable[..., Tensor]


def run(part: Part) -> None:
    for name, size in {"demo": DEMO, "middle": MIDDLE}.items():
        family = models.family(models.sized(part, size), part.device)
        family.nets.requires_grad_(False).eval()
        nets = {"float32": family.calls, "bfloat16": lowered(family, part)}
        for kind, calls in nets.items():
            part.measure(f"curve_ms.{name}.{kind}", lambda c=calls, f=family: curve(part, f, c), needs=3)
        if part.on_gpu:
            part.measure(f"graphs.{name}.bfloat16", lambda f=family, c=nets["bfloat16"]: graphs(part, f, c), needs=5)
        part.measure(f"overhead.{name}.bfloat16", lambda f=family, c=nets["bfloat16"]: overhead(part, f, c), needs=3)
        part.measure(f"clients.{name}.bfloat16", lambda f=family, c=nets["bfloat16"]: clients(part, f, c), needs=3)


def lowered(family: latent_diffusion.Model, part: Part) -> dict[str, Net]:
    """The family's calls in bfloat16."""

    def low(net: Net) -> Net:
        def call(**inputs: Tensor) -> Tensor:
            with torch.autocast(part.device.type, torch.bfloat16):
                return net(**inputs).float()

        return call

    return {name: low(net) for name, net in family.calls.items()}


@torch.inference_mode()
def inputs(part: Part, family: latent_diffusion.Model, rows: int) -> dict[str, Tensor]:
    """What a request of `rows` images asks the net first."""
    settings = family.Settings(guidance_scale=1.0)
    trajectory = family.trajectory(generation.request(family, settings, 0, rows, seed=0).to(part.device))
    call = next(trajectory)
    while call.net != models.net_name(family):
        call = trajectory.send(family.calls[call.net](**call.inputs))
    return {name: value.clone() for name, value in call.inputs.items()}


@torch.inference_mode()
def milliseconds(net: Net, asked: Mapping[str, Tensor], repeats: int) -> float:
    """The median of a forward that is waited for."""
    times = []
    for _ in range(repeats + 3):
        settle()
        began = time.perf_counter()
        net(**asked)
        settle()
        times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times[3:])


def rows_of(part: Part) -> tuple[int, ...]:
    return ROWS[:4] if part.toy else ROWS


def curve(part: Part, family: latent_diffusion.Model, calls: Mapping[str, Net]) -> dict[int, float]:
    net = calls[models.net_name(family)]
    return {rows: milliseconds(net, inputs(part, family, rows), 2 if part.toy else 15) for rows in rows_of(part)}


class Timed:
    """A net that adds up how long it takes, waited for."""

    def __init__(self, net: Net):
        self.net, self.seconds = net, 0.0

    def __call__(self, **inputs: Tensor) -> Tensor:
        settle()
        began = time.perf_counter()
        answer = self.net(**inputs)
        settle()
        self.seconds += time.perf_counter() - began
        return answer


def overhead(part: Part, family: latent_diffusion.Model, calls: Mapping[str, Net]) -> dict[str, float]:
    """Sixteen images of one row each through the engine: percent of the wall time outside networks that are waited for;
    and, unwaited, percent over the bare loop of as many forwards of 16 rows, and over one trajectory of 16 rows."""
    settings = {"num_inference_steps": 3 if part.toy else STEPS, "guidance_scale": 1.0}
    found = {}
    for solver in ("ddim", "dpmpp_2m"):
        chosen = {"solver": solver, **settings}
        through_engine(part, family, calls, chosen)  # warm
        timed = {name: Timed(net) for name, net in calls.items()}
        wall = through_engine(part, family, timed, chosen)
        found[f"{solver} percent_outside"] = 100 * (1 - sum(net.seconds for net in timed.values()) / wall)
        free = statistics.median(through_engine(part, family, calls, chosen) for _ in range(3))
        bare = statistics.median(bare_loop(part, family, calls, settings["num_inference_steps"]) for _ in range(3))
        alone = statistics.median(one_trajectory(part, family, calls, chosen) for _ in range(3))
        found[f"{solver} percent_over_bare_loop"] = 100 * (free / bare - 1)
        found[f"{solver} ms"] = {"engine": 1000 * free, "bare_loop": 1000 * bare, "one_trajectory": 1000 * alone}
    return found


def through_engine(part: Part, family: latent_diffusion.Model, nets: Mapping[str, Net], chosen: dict) -> float:
    """Seconds of NUM_IMAGES requests of one image, from submission to the last image."""
    requests = [
        generation.request(family, family.Settings(**chosen), number, number + 1, seed=0).to(part.device)
        for number in range(NUM_IMAGES)
    ]
    settle()
    began = time.perf_counter()
    engine = Engine(nets)
    futures = [engine.submit(lambda request=request: family.trajectory(request)) for request in requests]
    for future in futures:
        future.result()
    settle()
    taken = time.perf_counter() - began
    engine.stop()
    return taken


@torch.inference_mode()
def bare_loop(part: Part, family: latent_diffusion.Model, calls: Mapping[str, Net], steps: int) -> float:
    """Seconds of as many forwards of NUM_IMAGES rows, with Euler's step between them, and the decoder's."""
    net, asked = calls[models.net_name(family)], inputs(part, family, NUM_IMAGES)
    settle()
    began = time.perf_counter()
    for step in range(steps):
        asked["x"] = asked["x"] - net(**asked) / (steps - step + 1)
    calls["decoder"](latents=asked["x"])
    settle()
    return time.perf_counter() - began


@torch.inference_mode()
def one_trajectory(part: Part, family: latent_diffusion.Model, calls: Mapping[str, Net], chosen: dict) -> float:
    """Seconds of the same images as one request."""
    request = generation.request(family, family.Settings(**chosen), 0, NUM_IMAGES, seed=0).to(part.device)
    settle()
    began = time.perf_counter()
    drive(family.trajectory(request), calls)
    settle()
    return time.perf_counter() - began


def graphs(part: Part, family: latent_diffusion.Model, calls: Mapping[str, Net]) -> dict:
    """The curve and the engine's overhead with CUDA graphs, and how far an answer is from one without."""
    nets = replayed(calls)
    asked = inputs(part, family, NUM_IMAGES)
    began = time.perf_counter()
    with torch.inference_mode():
        name = models.net_name(family)
        apart = float((nets[name](**asked) - calls[name](**asked)).abs().max())
    return {
        "record_seconds": time.perf_counter() - began,
        "max_abs_difference": apart,
        "curve_ms": curve(part, family, nets),
        "overhead": overhead(part, family, nets),
        "clients": clients(part, family, nets, buckets=powers_of_two(64)),
    }


def clients(
    part: Part, family: latent_diffusion.Model, calls: Mapping[str, Net], buckets: Sequence[int] = ()
) -> dict[str, float]:
    """Images a second of CLIENTS at once, each of whom asks for the next image when the last has come; the same
    requests one after the other; and rows a forward."""
    asked = 1 if part.toy else ASKED
    forwards: list[Forward] = []
    engine = Engine(calls, buckets=buckets, on_forward=forwards.append)

    def settings(number: int) -> object:
        kind = KINDS[number % len(KINDS)]
        return family.Settings(**kind | ({"num_inference_steps": 3} if part.toy else {}))

    def client(number: int, times: int = asked) -> None:
        for turn in range(times):
            place = number + CLIENTS * turn
            request = generation.request(family, settings(number), place, place + 1, seed=0).to(part.device)
            engine.submit(lambda request=request: family.trajectory(request)).result().cpu()

    for number in range(CLIENTS):  # warm
        client(number, 1)
    began = time.perf_counter()
    for number in range(len(KINDS)):
        client(number, 1)
    alone = len(KINDS) / (time.perf_counter() - began)
    forwards.clear()
    threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    together = CLIENTS * asked / (time.perf_counter() - began)
    engine.stop()
    rows = sum(forward.rows for forward in forwards) / max(1, len(forwards))
    return {"images_per_second": together, "one_by_one": alone, "gain": together / alone, "rows_per_forward": rows}
