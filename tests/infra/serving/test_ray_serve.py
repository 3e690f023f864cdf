import base64
import contextlib
import functools
import io
import itertools
import json
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openai
import psutil
import pytest
import ray
import torch
from PIL import Image
from ray import serve

from components.artifacts import run_folder
from components.data.media.image import MEDIUM
from components.sampling.requests import Conditions, Request
from infra.config import ServeConfig
from infra.serving import ray_serve
from infra.serving.admission import LONGEST_HOLD
from infra.serving.model_store import ModelStore
from tests.infra.local import StuckReplica, free_port, served_model, serving
from tests.infra.local import client as client_of
from tests.infra.serving_helpers import CLASSES, write_promoted, write_sampler

DEFAULTS = {"solver": "ddim", "num_inference_steps": 4, "guidance_scale": 2.0}
FAST = {"num_inference_steps": 3}
SLOW = {"num_inference_steps": 1000, "sampler": "heun"}
WHOLE = {"num_inference_steps": 300, "sampler": "heun"}  # long, and yet waited for
CONFIG = ServeConfig(
    max_images=4, max_steps=1000, max_body=20_000, slots=16, queue=16, threads=1, watch_every=0.5, keep_former=0
)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project's root with a promoted sampler."""
    root = tmp_path_factory.mktemp("project")
    write_sampler(root / "runs" / "ldm")
    return write_promoted(root, "runs/ldm", "3", settings=DEFAULTS, figures={"frechet_distance": 1.5})


@pytest.fixture(scope="module")
def address(ray_session, project):
    config = CONFIG.model_copy(update={"port": free_port()})
    ray_serve.start(ModelStore(root=str(project)), config)
    yield f"http://127.0.0.1:{config.port}"
    ray_serve.stop()


@pytest.fixture
def model(folder):
    return served_model(folder)


@pytest.fixture
def client(address):
    return client_of(address)


def post(address: str, body: bytes, path: str = "/v1/images/generations"):
    """Status, headers and parsed answer of a raw request."""
    request = urllib.request.Request(address + path, data=body, headers={"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.headers, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, error.headers, json.load(error)


def pixels(item) -> np.ndarray:
    picture = Image.open(io.BytesIO(base64.b64decode(item.b64_json)))
    assert picture.format == "PNG"
    return np.asarray(picture)


def test_a_class_by_name_or_number(client):
    images = [
        pixels(client.images.generate(prompt=prompt, extra_body={"seed": 5, **FAST}).data[0])
        for prompt in ("two", "TWO", "2", "one")
    ]
    assert images[0].shape == (16, 16)
    assert (images[0] == images[1]).all() and (images[0] == images[2]).all()
    assert (images[0] != images[3]).any()


def test_the_image_is_the_samplers_own(client, project):
    family = run_folder.load(project / "runs/ldm").family
    settings = family.Settings(solver="heun", num_inference_steps=5, guidance_scale=3.0)
    expected = MEDIUM.to_stored(
        family.sample(Request(torch.tensor([11]), settings, Conditions(label=torch.tensor([1]))))
    )[0, 0].numpy()
    answer = client.images.generate(
        prompt="one",
        model="latent-foundry",
        size="16x16",
        response_format="b64_json",
        user="somebody",
        extra_body={
            "seed": 11,
            "sampler": "heun",
            "num_inference_steps": 5,
            "guidance_scale": 3.0,
            "unknown": {"a": 1},
        },
    )
    assert np.abs(pixels(answer.data[0]).astype(int) - expected).max() <= 1


def test_promoted_settings_are_the_defaults(client):
    plain = client.images.generate(prompt="one", extra_body={"seed": 7})
    told = client.images.generate(prompt="one", extra_body={"seed": 7, **DEFAULTS})
    other = client.images.generate(prompt="one", extra_body={"seed": 7, **DEFAULTS, "guidance_scale": 9})
    assert plain.data[0].b64_json == told.data[0].b64_json != other.data[0].b64_json


def test_several_images_have_successive_seeds(client):
    several = client.images.generate(prompt="zero", n=3, extra_body={"seed": 20, **FAST})
    assert [item.seed for item in several.data] == [20, 21, 22]
    second = client.images.generate(prompt="zero", extra_body={"seed": 21, **FAST})
    assert np.abs(pixels(several.data[1]).astype(int) - pixels(second.data[0])).max() <= 1


def test_a_seed_is_drawn_and_told(client):
    first, other = (client.images.generate(prompt="zero", extra_body=FAST).data[0] for _ in range(2))
    again = client.images.generate(prompt="zero", extra_body={"seed": first.seed, **FAST}).data[0]
    assert first.b64_json == again.b64_json != other.b64_json


def test_many_clients_at_once(client):
    def make(seed: int):
        extra = {"seed": seed, "num_inference_steps": 3 + seed % 9, "guidance_scale": 1 + seed % 3}
        return pixels(client.images.generate(prompt=CLASSES[seed % 3], extra_body=extra).data[0])

    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(make, range(24)))
    for seed in (0, 7, 23):
        assert np.abs(together[seed].astype(int) - make(seed)).max() <= 1


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_file_formats(client, output_format):
    answer = client.images.generate(prompt="two", output_format=output_format, output_compression=90, extra_body=FAST)
    picture = Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json)))
    assert picture.format == output_format.upper() and picture.size == (16, 16)
    assert answer.output_format == output_format


def test_a_stream_shows_previews_and_ends_in_the_image(client):
    extra = {"seed": 9, "num_inference_steps": 8}
    events = list(client.images.generate(prompt="two", stream=True, partial_images=3, extra_body=extra))
    assert [event.type for event in events] == ["image_generation.partial_image"] * 3 + ["image_generation.completed"]
    assert [event.partial_image_index for event in events[:3]] == [0, 1, 2]
    assert [event.progress for event in events[:3]] == [0.25, 0.5, 0.75]
    plain = client.images.generate(prompt="two", extra_body=extra)
    assert events[-1].b64_json == plain.data[0].b64_json
    assert events[-1].usage.total_tokens == 0 and events[-1].size == "16x16"
    distances = [np.abs(pixels(event).astype(int) - pixels(events[-1])).mean() for event in events]
    assert distances[0] > distances[2] > distances[3] == 0  # estimates come closer


def test_a_stream_of_several_images(client):
    events = list(client.images.generate(prompt="two", n=2, stream=True, partial_images=1, extra_body={"seed": 3}))
    assert sorted((event.index, event.type.split(".")[1]) for event in events) == [
        (0, "completed"),
        (0, "partial_image"),
        (1, "completed"),
        (1, "partial_image"),
    ]
    assert {event.index: event.seed for event in events} == {0: 3, 1: 4}


def test_a_stream_without_previews(client):
    (event,) = client.images.generate(prompt="two", stream=True, extra_body=FAST)
    assert event.type == "image_generation.completed"


def test_the_page_loads_nothing_from_elsewhere(address):
    with urllib.request.urlopen(address, timeout=60) as answer:
        page, policy = answer.read().decode(), answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert not re.search(r"""(src|href)=["']?(https?:)?//|@import|\burl\(""", page)


def test_what_the_page_is_told(address):
    with urllib.request.urlopen(f"{address}/champion", timeout=60) as answer:
        champion = json.load(answer)
    assert champion["classes"] == list(CLASSES) and champion["version"] == "3"
    assert champion["settings"]["num_inference_steps"] == 4
    assert champion["lineage"]["data"] == "data" and champion["figures"] == {"frechet_distance": 1.5}


def test_models(client):
    assert [model.id for model in client.models.list()] == ["latent-foundry", "latent-foundry@3"]
    assert client.models.retrieve("latent-foundry").id == "latent-foundry"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("dall-e-3")


def test_healthz(address):
    told = health(address)
    assert told["status"] == "ok" and told["model"] == "latent-foundry@3"
    assert told["load"]["active"] == 0 and told["load"]["slots"] == CONFIG.slots


@pytest.mark.parametrize(
    ("change", "status", "param", "message"),
    [
        ({"prompt": "a cat"}, 400, "prompt", "names no class; expected one of zero, one, two"),
        ({"prompt": 3}, 400, "prompt", "valid string"),
        ({"prompt": None}, 400, "prompt", "valid string"),
        ({"prompt": "x" * 1001}, 400, "prompt", "at most 1000 characters, found 1001"),
        ({"n": 5}, 400, "n", "at most 4 images a request, found 5"),
        ({"n": 0}, 400, "n", "greater than or equal to 1, found '0'"),
        ({"size": "1024x1024"}, 400, "size", "expected '16x16' or 'auto', found '1024x1024'"),
        ({"response_format": "hex"}, 400, "response_format", "'b64_json'"),
        ({"output_format": "gif"}, 400, "output_format", "'png', 'jpeg' or 'webp'"),
        ({"output_compression": 101}, 400, "output_compression", "less than or equal to 100"),
        ({"stream": True, "partial_images": 4}, 400, "partial_images", "less than or equal to 3"),
        ({"stream": True, "prompt": "a cat"}, 400, "prompt", "names no class"),
        ({"padding": "x" * 20_000}, 413, "body", "at most 20000 bytes"),
        ({"seed": -2}, 400, "seed", "greater than or equal to -1"),
        ({"seed": 2**70}, 400, "seed", "less than or equal to"),
        ({"num_inference_steps": 0}, 400, "num_inference_steps", "greater than or equal to 1"),
        ({"num_inference_steps": 1001}, 400, "num_inference_steps", "less than or equal to 1000"),
        ({"guidance_scale": "high"}, 400, "guidance_scale", "valid number"),
        ({"sampler": "magic"}, 400, "solver", "'ddim'"),
        ({"model": "dall-e-3"}, 404, "model", "expected 'latent-foundry'"),
    ],
)
def test_refusals_name_the_field(address, change, status, param, message):
    answered, headers, answer = post(address, json.dumps({"prompt": "one", **change}).encode())
    assert answered == status
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert answer["error"]["param"] == param
    assert message in answer["error"]["message"] and "\n" not in answer["error"]["message"]
    assert len(headers.get_all("x-request-id")) == 1


@pytest.mark.parametrize(
    ("body", "path", "status"), [(b"{", None, 400), (b"[]", None, 400), (b"{}", "/v2/images", 404)]
)
def test_what_is_no_request_at_all(address, body, path, status):
    answered, headers, answer = post(address, body, path or "/v1/images/generations")
    assert answered == status
    assert answer["error"]["message"] and headers["x-request-id"]


def test_errors_as_the_client_sees_them(client):
    with pytest.raises(openai.BadRequestError, match="names no class") as refused:
        client.images.generate(prompt="a cat")
    assert refused.value.param == "prompt" and refused.value.request_id


def health(address: str) -> dict:
    with urllib.request.urlopen(f"{address}/healthz", timeout=60) as answer:
        return json.load(answer)


def load(address: str) -> dict:
    return health(address)["load"]


def wait_for(condition, seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_overload_is_refused_and_leaving_makes_room(address, client):
    streams = []
    with pytest.raises(openai.RateLimitError, match="queue is full") as refused:
        for _ in range(12):
            streams.append(client.images.generate(prompt="one", n=4, stream=True, extra_body=SLOW))
    assert int(refused.value.response.headers["retry-after"]) >= 1 and refused.value.request_id
    for stream in streams:
        stream.close()
    wait_for(lambda: load(address)["active"] + load(address)["waiting"] == 0)
    time.sleep(1.5 * LONGEST_HOLD)
    assert client.images.generate(prompt="one", extra_body=FAST).data[0].b64_json


def test_a_client_who_leaves_ends_the_work(address):
    """Not a stream: nothing has been answered yet when the connection closes."""
    host, port = address.removeprefix("http://").split(":")
    body = json.dumps({"prompt": "one", "n": 4, **WHOLE}).encode()
    head = f"POST /v1/images/generations HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    time.sleep(2 * ray_serve.REMEMBERED)  # the test before was refused
    connection = socket.create_connection((host, int(port)), timeout=60)
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    wait_for(lambda: load(address)["active"] == 8)
    began = time.monotonic()
    connection.close()
    wait_for(lambda: load(address)["active"] == 0)
    cancelled = time.monotonic() - began
    began = time.monotonic()
    assert post(address, body)[0] == 200
    assert cancelled < (time.monotonic() - began) / 2  # not just finished


def test_the_engines_figures_are_exported(address, client):
    client.images.generate(prompt="one", extra_body=FAST)
    (node,) = ray.nodes()
    exporter = f"http://127.0.0.1:{node['MetricsExportPort']}/metrics"

    def exported() -> str:
        with urllib.request.urlopen(exporter, timeout=60) as answer:
            return answer.read().decode()

    wait_for(
        lambda: re.search(r'^ray_foundry_forward_rows_count\{.*net="denoiser".*\} [1-9]', exported(), re.MULTILINE)
    )
    wait_for(lambda: "ray_foundry_forward_ms_sum" in (told := exported()) and "ray_foundry_waiting_rows" in told)

    def ours() -> str:
        with urllib.request.urlopen(f"{address}/metrics", timeout=60) as answer:  # the same from the API's own port
            return answer.read().decode()

    wait_for(lambda: "ray_foundry_stage_ms_bucket{" in (told := ours()) and 'stage="queue"' in told)
    assert {line.partition("_")[0] for line in ours().splitlines() if line[0] != "#"} == {"ray"}


def test_no_process_of_serve_listens_beyond_loopback(address):
    listening = set()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.name().startswith("ray::"):
                opened = [one.laddr.ip for one in process.net_connections() if one.status == psutil.CONN_LISTEN]
                listening |= {(process.name(), ip) for ip in opened}
    assert any("ServeReplica" in name for name, _ in listening)
    assert {ip for _, ip in listening} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, listening


def test_a_replica_that_dies_is_replaced_and_its_requests_are_told(address, client):
    with ThreadPoolExecutor(1) as pool:
        doomed = pool.submit(client.images.generate, prompt="one", n=4, extra_body=SLOW)
        wait_for(lambda: load(address)["active"] == 8)
        kill_a_replica("3")
        with pytest.raises(openai.InternalServerError, match="is being replaced") as lost:
            doomed.result(timeout=60)
    assert lost.value.status_code == 503 and lost.value.response.headers["retry-after"] == "1"
    assert client.with_options(timeout=180, max_retries=20).images.generate(prompt="one", extra_body=FAST).data


def test_a_stuck_engine_is_replaced_and_who_waits_is_told(address, folder, monkeypatch):
    """Beside the others, with its own API in this process."""
    monkeypatch.setattr(ray_serve, "VERSION", "apart-")  # no version that the frontend knows, and would end
    model, config = served_model(folder, "stuck"), CONFIG.model_copy(update={"stuck_after": 0.5, "port": free_port()})
    app = ray_serve.version_app(model, config, replica=StuckReplica)
    serve.run(app, name=ray_serve.app_name(model.key), route_prefix=None)
    backend = ray_serve.Samplers(config.deadline)
    backend.adopt((model,))
    with serving(backend, config) as apart:
        with pytest.raises(openai.InternalServerError, match="is being replaced") as lost:
            client_of(apart).images.generate(prompt="one", extra_body={"seed": StuckReplica.STUCK_AT, **FAST})
        assert lost.value.status_code == 503 and lost.value.response.headers["retry-after"] == "1"
        assert set(lost.value.body) == {"message", "type", "param", "code"}
        again = client_of(apart, retries=50).images.generate(prompt="one", extra_body=FAST)
        assert again.data and again.model == "latent-foundry@stuck"
    serve.delete(ray_serve.app_name(model.key))


def replicas() -> list[str]:
    """Names of the sampler replicas, those of the newest version last."""
    actors = (actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True))
    return sorted(name for name in actors if name.startswith("SERVE_REPLICA::") and "#sampler#" in name)


def kill_a_replica(version: str) -> None:
    (name,) = (name for name in replicas() if f"latent-foundry-{version}-" in name)
    ray.kill(ray.get_actor(name, namespace="serve"))


def reigning(address: str) -> int:
    with urllib.request.urlopen(f"{address}/champion", timeout=60) as answer:
        return int(json.load(answer)["version"])


class Traffic:
    """Clients that ask for pairs of images until told to end. `answers`: seed, version, pixels of each."""

    def __init__(self, address: str, num_clients: int):
        self.address, self.ended, self.seeds = address, threading.Event(), itertools.count()
        self.answers: list[tuple[int, str, list[np.ndarray]]] = []
        self.pool = ThreadPoolExecutor(num_clients)
        self.clients = [self.pool.submit(self.ask) for _ in range(num_clients)]

    def ask(self) -> None:
        patient = client_of(self.address, retries=100)
        while not self.ended.is_set():
            seed = 10 * next(self.seeds)
            made = patient.images.generate(prompt="two", n=2, extra_body={"seed": seed, **FAST})
            self.answers.append((seed, made.model, [pixels(item) for item in made.data]))
            time.sleep(0.1)

    def end(self) -> None:
        self.ended.set()
        for one in self.clients:
            one.result(120)


@pytest.mark.parametrize(("promotions", "num_requests"), [(1, 30), pytest.param(3, 200, marks=pytest.mark.slow)])
def test_promotions_and_a_killed_replica_lose_nothing(address, project, promotions, num_requests):
    """Every request is answered, wholly by one version, and labelled with it."""
    traffic, first = Traffic(address, 4), reigning(address)
    for version in range(first + 1, first + 1 + promotions):
        write_sampler(project / f"runs/{version}", seed=version)
        write_promoted(project, f"runs/{version}", str(version), settings=DEFAULTS)
        wait_for(lambda version=version: reigning(address) == version)
        if version == first + 1:
            kill_a_replica(str(version))
    expected = {f"latent-foundry@{version}" for version in range(first, first + 1 + promotions)}
    wait_for(lambda: len(traffic.answers) >= num_requests and {model for _, model, _ in traffic.answers} == expected)
    traffic.end()
    for seed, model, images in traffic.answers:
        version = model.partition("@")[2]
        family = family_of(project / "runs" / ("ldm" if version == "3" else version))
        settings = family.Settings(**DEFAULTS | FAST)
        for image, own_seed in zip(images, (seed, seed + 1), strict=True):
            request = Request(torch.tensor([own_seed]), settings, Conditions(label=torch.tensor([2])))
            assert np.abs(image.astype(int) - MEDIUM.to_stored(family.sample(request))[0, 0].numpy()).max() <= 1
    wait_for(lambda: len(replicas()) == 1)  # those before are gone


@functools.lru_cache
def family_of(folder):
    return run_folder.load(folder).family
