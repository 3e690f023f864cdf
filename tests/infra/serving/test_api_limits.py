"""What the API bears and tells: origins, bodies, keys, seeds, names and sizes that other clients send."""

import asyncio
import base64
import contextlib
import io
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import unquote

import openai
import pytest
from PIL import Image

from infra.config import ServeConfig
from infra.serving import form_fields
from infra.serving.api_error import ApiError
from infra.serving.http_guards import digest
from infra.serving.openai_api import MAX_SEED, GenerationRequest, orders
from infra.serving.uploads import Decoder, num_pixels
from tests.infra.local import ask, client, served_model

PATH = "/v1/images/generations"
FAST = {"num_inference_steps": 2}


def post(address, headers=(), path=PATH, **fields):
    """Status, headers, body."""
    told = {"Content-Type": "application/json", **dict(headers)}
    status, found, answer = ask(address, path, json.dumps({"prompt": "one", **FAST, **fields}).encode(), **told)
    return status, found, json.loads(answer)


@pytest.mark.parametrize(
    ("fields", "origin", "keys", "status"),
    [
        ({}, None, (), 200),
        ({}, "http://localhost:1", (), 200),
        ({}, "https://evil.example", (), 403),
        ({}, "null", (), 403),
        ({"cors_origins": ("https://studio.example",)}, "https://studio.example", (), 200),
        ({}, "https://evil.example", (digest("k"),), 200),  # a page has no key
    ],
)
def test_pages_of_other_origins_may_not_spend_the_servers_time(run, fields, origin, keys, status):
    address = run(keys=keys, **fields)
    headers = {"Origin": origin, "Host": "localhost:1"} if origin else {}
    answered, _, body = post(address, {**headers, "Authorization": "Bearer k"})
    assert answered == status and (status == 200 or body["error"]["param"] == "origin")


def test_openais_client_in_a_page_passes_where_its_origin_may(run):
    address = run(cors_origins=("https://studio.example",))
    asked = "authorization,content-type,x-stainless-lang,x-stainless-retry-count"
    with socket.create_connection(tuple(address.removeprefix("http://").split(":"))) as connection:
        head = f"OPTIONS {PATH} HTTP/1.1\r\nHost: localhost\r\nOrigin: https://studio.example\r\n"
        head += f"Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: {asked}\r\n\r\n"
        connection.sendall(head.encode())
        answer = connection.recv(65536).decode()
    assert answer.startswith("HTTP/1.1 200") and "x-stainless-lang" in answer


def test_a_trailing_slash_leads_nowhere_else(run):
    status, headers, body = post(run(), path=PATH + "/")
    assert status == 200 and body["data"] and "location" not in headers


@contextlib.contextmanager
def unfinished(address, count=1):
    """Requests whose bodies do not come."""
    host, port = address.removeprefix("http://").split(":")
    head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"
    with contextlib.ExitStack() as opened:
        connections = [opened.enter_context(socket.create_connection((host, int(port)))) for _ in range(count)]
        for connection in connections:
            connection.sendall(head.encode() + b"{")
        yield connections


def test_a_body_that_does_not_come_is_given_up(run):
    with unfinished(run(body_timeout=0.3)) as (connection,):
        connection.settimeout(30)
        answer = connection.recv(65536).decode()
    assert answer.startswith("HTTP/1.1 408") and "body: not here after 0.3 s" in answer


def test_bodies_that_do_not_come_stop_neither_health_nor_memory(run):
    address = run(open_bodies=20)
    with unfinished(address, 20):
        until = time.monotonic() + 30
        while (status := post(address)[0]) != 503:  # they are many enough
            assert time.monotonic() < until, status
        assert [ask(address, path)[0] for path in ("/livez", "/readyz", "/healthz")] == [200, 200, 200]
    while post(address)[0] != 200:
        assert time.monotonic() < until


def test_readiness_is_not_liveness(run, backend):
    async def check(model):
        raise ApiError(503, "lost")

    backend.check = check
    address = run()
    assert ask(address, "/livez")[0] == 200 and ask(address, "/readyz")[0] == 503


def test_trouble_with_the_registry_is_told(run, backend):
    backend.trouble = "OperationalError"
    assert json.loads(ask(run(), "/healthz")[2])["registry"] == "OperationalError"


def test_metrics_ask_for_a_key_where_images_do(run):
    assert ask(run(), "/metrics")[2] == b"foundry_everything 0\n"
    guarded = run(keys=(digest("k"),))
    assert ask(guarded, "/metrics")[0] == 401
    assert ask(guarded, "/metrics?all=1", Authorization="Bearer k")[2] == b"foundry_everything 1\n"


def test_a_key_may_wait_for_so_many_images(run, backend):
    address = run(images_per_key=2, max_steps=1000, keys=(digest("a"), digest("b")))
    stream = client(address, "a").images.generate(
        prompt="one", n=2, stream=True, extra_body={"num_inference_steps": 1000}
    )
    with pytest.raises(openai.RateLimitError, match="at most 2 images at a time for one API key, found 3"):
        client(address, "a").images.generate(prompt="one", extra_body=FAST)
    assert client(address, "b").images.generate(prompt="one", extra_body=FAST).data
    stream.close()
    assert client(address, "a", retries=5).images.generate(prompt="one", extra_body=FAST).data


def image(width, height, file_format="PNG"):
    buffer = io.BytesIO()
    Image.new("L", (width, height)).save(buffer, file_format)
    return buffer.getvalue()


def test_images_are_opened_within_a_budget_of_pixels(folder, monkeypatch):
    from infra.serving import uploads

    entered, release, model = threading.Event(), threading.Event(), served_model(folder)

    def slow(*args):
        entered.set()
        assert release.wait(60)

    monkeypatch.setattr(uploads, "source", slow)
    decoder = Decoder(10_000, 15_000)

    async def run():
        first = asyncio.ensure_future(decoder.source(image(100, 100), None, None, model, True))
        await asyncio.to_thread(entered.wait)
        with pytest.raises(ApiError, match="too many images") as refused:
            await decoder.source(image(100, 100), None, None, model, True)
        assert refused.value.status == 429
        second = asyncio.ensure_future(decoder.source(image(50, 50), None, None, model, True))  # fits, and waits
        release.set()
        await asyncio.gather(first, second)
        await decoder.source(image(100, 100), None, None, model, True)

    asyncio.run(run())


def test_pixels_are_counted_before_they_are_decoded():
    assert num_pixels(image(30, 20), "image", 600) == 600 and num_pixels(b"no image", "image", 1) == 0
    with pytest.raises(ApiError, match="image: at most 599 pixels, found 30x20"):
        num_pixels(image(30, 20), "image", 599)


def test_minus_one_is_any_seed_and_the_largest_has_a_next(run):
    address = run()
    seeds = [post(address, seed=-1)[2]["data"][0]["seed"] for _ in range(2)]
    assert seeds[0] != seeds[1] and min(seeds) >= 0
    assert [item["seed"] for item in post(address, seed=MAX_SEED, n=2)[2]["data"]] == [MAX_SEED, 0]
    assert post(address, seed=-2)[0] == 400


def test_what_is_ignored_is_told(run):
    _, headers, body = post(run(), background="transparent", **{"größe\r\nX-Evil: 1": 2, "guidance_scale": 2})
    assert body["ignored"] == ["background", "größe\r\nX-Evil: 1"]  # OpenAI's clients hide headers
    assert headers["x-ignored"] == "background, gr%C3%B6%C3%9Fe%0D%0AX-Evil%3A%201"
    assert headers["x-model"] == "latent-foundry@3" and int(headers["x-queue-ms"]) >= 0


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("latent-foundry", "latent-foundry@3"),
        ("a (b), c_d.e+f", "a (b), c_d.e+f@3"),
        ("模型", "%E6%A8%A1%E5%9E%8B@3"),
        ("café 100%", "caf%C3%A9 100%25@3"),
    ],
)
def test_a_models_name_may_be_of_any_letters(run, backend, name, told):
    backend.models = (backend.models[0].model_copy(update={"name": name}),)
    address = run()
    for stream in (False, True):
        answer = client(address).images.with_raw_response.generate(prompt="one", stream=stream, extra_body=FAST)
        assert answer.headers["x-model"] == told and unquote(told) == f"{name}@3"


def test_guidance_that_a_model_never_learned_is_told_as_ignored(run, backend):
    served = backend.models[0]
    config = {**served.run.config, "label_dropout": 0.0}
    backend.models = (served.model_copy(update={"run": served.run.model_copy(update={"config": config})}),)
    address = run()
    assert post(address, guidance_scale=2)[1]["x-ignored"] == "guidance_scale"
    for heard in ({}, {"guidance_scale": 1}, {"guidance_scale": 2, "negative_prompt": "two"}):
        _, headers, body = post(address, **heard)
        assert "x-ignored" not in headers and "ignored" not in body


def test_a_stream_tells_what_is_ignored_with_each_image(run):
    asked = {"extra_body": {**FAST, "background": "opaque", "eta": 1}, "stream": True, "partial_images": 1}
    shown = list(client(run()).images.generate(prompt="one", **asked))
    assert [getattr(event, "ignored", None) for event in shown] == [None, ["background", "eta"]]


@pytest.mark.parametrize(
    ("fields", "param", "told"),
    [
        ({"n": True}, "n", "n: Input should be a valid integer"),
        ({"seed": False}, "seed", "seed: Input should be a valid integer"),
        ({"blend": {"prompt": "two", "share": True}}, "blend.share", "blend.share: Input should be a valid number"),
        (
            {"guidance_interval": [5, 0.2]},
            "guidance_interval",
            "guidance_interval: expected 0 <= first < second, found [5.0, 0.2]",
        ),
        (
            {"num_inference_steps": 300},
            "num_inference_steps",
            "num_inference_steps: at most 250, found 300",
        ),
    ],
)
def test_errors_name_the_field_that_is_wrong(run, fields, param, told):
    status, _, body = post(run(max_steps=250), **fields)
    assert status == 400
    assert body["error"]["param"] == param and body["error"]["message"].startswith(told)
    assert "crops" not in body["error"]["message"] and "reuse" not in body["error"]["message"]


def test_fields_of_other_routes_are_ignored_and_told(run, backend):
    address, files = run(), {"image": ("a.png", image(16, 16))}
    for value in ("a cat", 5, ["a cat"]):
        assert post(address, instead_of=value)[1]["x-ignored"] == "instead_of"
    images = client(address).images.with_raw_response
    for blend in ({"seed": 8}, "x"):
        extra = {"blend": blend, **FAST}
        assert images.edit(prompt="one", extra_body=extra, **files).headers["x-ignored"] == "blend"
        extra |= {"prompt": "one", "negative_prompt": "two"}
        told = images.create_variation(extra_body=extra, **files).headers["x-ignored"]
        assert sorted(told.split(", ")) == ["blend", "negative_prompt", "prompt"]
    assert all(order.blend is None and order.instead_of is None for order in backend.orders)


def test_names_sizes_and_urls_of_other_clients(run):
    asked = {"model": "dall-e-2", "size": "512x256", "response_format": "url"}
    address = run(aliases={"dall-e-2": "latent-foundry"}, sizes="resize")
    status, _, body = post(address, **asked)
    assert (status, body["size"], body["model"]) == (200, "512x256", "latent-foundry@3")
    kind, _, content = body["data"][0]["url"].partition(";base64,")
    assert kind == "data:image/png" and Image.open(io.BytesIO(base64.b64decode(content))).size == (512, 256)
    assert post(address, **{**asked, "size": "5000x1"})[0] == 400
    status, _, body = post(run(sizes="nearest"), size="512x512")
    assert (status, body["size"]) == (200, "16x16")
    assert post(run(), size="512x512")[0] == 400 and post(run(), model="dall-e-2")[0] == 404


def test_a_model_tells_what_a_page_needs(run):
    told = json.loads(ask(run(max_images=3), "/v1/models/latent-foundry")[2])["x-sampler"]
    assert told["size"] == "16x16" and told["classes"] == ["zero", "one", "two"] and told["limits"]["n"] == 3
    assert "num_inference_steps" in told["settings_schema"] and told["settings"]["solver"]


def test_null_is_none_where_a_setting_may_be_none_and_the_default_elsewhere(folder):
    model = served_model(folder, settings={"guidance_scale": 3.0, "guidance_interval": [0.2, 5.0]})

    def asked(**fields) -> list:
        request = GenerationRequest(prompt="one", **fields)
        (order,) = orders(request, model, ServeConfig())
        return [order.settings["guidance_scale"], order.settings["guidance_interval"]]

    assert asked() == [3.0, [0.2, 5.0]]
    assert asked(guidance_scale=None, guidance_interval=None) == [3.0, None]


def test_values_nested_however_deep_are_refused_in_a_line(folder):
    deep = form_fields.read([("guidance_scale" + "[a]" * 5000, "1")], GenerationRequest.model_fields)
    with pytest.raises(ApiError, match="^guidance_scale: .* found 'values nested too deeply to be shown'$") as error:
        orders(GenerationRequest(prompt="one", **deep), served_model(folder), ServeConfig())
    assert error.value.status == 400


def test_png_files_say_what_they_were_made_with(run):
    address = run()

    def texts(**fields):
        item = post(address, seed=7, **fields)[2]["data"][0]
        return Image.open(io.BytesIO(base64.b64decode(item["b64_json"]))).text

    told = texts(negative_prompt="two", guidance_scale=2.5)
    prompt, negative, facts = told["parameters"].splitlines()
    assert (prompt, negative) == ("one", "Negative prompt: two")
    assert facts.startswith("Steps: 2, Sampler: ") and "CFG scale: 2.5, Seed: 7, Size: 16x16, Model hash: " in facts
    assert json.loads(told["latent-foundry"])["model"] == "latent-foundry@3"
    assert texts(metadata=False) == {}


def test_a_stream_tells_how_many_come_before(run, backend):
    backend.engine.slots = 1
    address = run(max_steps=1000)
    with ThreadPoolExecutor(2) as pool:
        busy = [
            client(address).images.generate(prompt="one", stream=True, extra_body={"num_inference_steps": 1000})
            for _ in range(2)
        ]
        body = {"prompt": "one", "stream": True, "queue_updates": True, **FAST}
        told = pool.submit(ask, address, PATH, json.dumps(body).encode(), **{"Content-Type": "application/json"})
        until = time.monotonic() + 30
        while backend.engine.load().waiting < 2:
            assert time.monotonic() < until
        time.sleep(0.2)
        for stream in busy:
            stream.close()
        _, headers, answer = told.result(60)
        names = [line for line in answer.decode().splitlines() if line.startswith("event: ")]
    assert headers["x-queue-position"] == "1", "one waits before it"
    (data,) = [line for line in answer.decode().splitlines() if line.startswith("data: ") and ".completed" in line]
    assert json.loads(data.removeprefix("data: "))["queue_ms"] >= 200
    assert names[0] == "event: image_generation.queued" and names[-1] == "event: image_generation.completed"
