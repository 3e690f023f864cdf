"""Whatever is sent, the API answers, and never with a failure of its own."""

import json

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from starlette.testclient import TestClient

from components.data.media.image import MEDIUM
from infra.config import ServeConfig
from infra.serving import http_api
from infra.serving.backend import Made, Update
from tests.infra.local import ask, served_model

HEALTH = list(HealthCheck)


class Ready:
    """A backend that has every image already."""

    trouble = ""

    def __init__(self, model):
        import torch

        self.model, self.image = model, MEDIUM.encode(torch.zeros(model.row_shape), "png")

    async def served(self):
        return (self.model,)

    async def generate(self, orders):
        return Made([self.image for _ in orders], 0.0)

    async def stream(self, orders):
        yield 0, Update(0.0, b"")
        for number in range(len(orders)):
            yield number, Update(1.0, self.image, final=True)

    async def metrics(self, everything):
        return ""

    async def check(self, model):
        return {}


@pytest.fixture(scope="module")
def api(folder):
    app = http_api.build(Ready(served_model(folder)), ServeConfig(allowed_hosts=("*",)))
    return schemathesis.openapi.from_asgi("/openapi.json", app)


@pytest.fixture
def asked(folder):
    """asked(method, path, body, headers...) -> status and body, of the same server."""
    app = http_api.build(Ready(served_model(folder)), ServeConfig())

    def ask(method, path, body=None, **headers):
        headers = {"content-type": "application/json", **headers}
        answer = TestClient(app, "http://localhost", raise_server_exceptions=False).request(
            method, path, content=body, headers=headers
        )
        return answer.status_code, answer.json()

    return ask


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_nothing_makes_the_server_fail(api, mode):
    """Bodies and parameters that fit the description of each route, and ones that do not."""
    statuses = set()
    operations = (found.ok() for found in api.get_all_operations())
    for operation in (found for found in operations if found.method == "post" or mode is GenerationMode.POSITIVE):

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(max_examples=20, deadline=None, derandomize=True, database=None, suppress_health_check=HEALTH)
        def ask(case):
            answer = case.call()
            statuses.add(answer.status_code)
            case.validate_response(answer, checks=[not_a_server_error])
            if answer.status_code >= 400:
                assert set(answer.json()["error"]) == {"message", "type", "param", "code"}

        ask()
    assert (200 in statuses) == (mode is GenerationMode.POSITIVE) and 400 in statuses


HALF = "\ud83d"  # of an emoji, as json.dumps escapes it
IMAGES, VIDEOS = "/v1/images/generations", "/v1/videos"


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        (IMAGES, {"prompt": HALF}, "prompt"),
        (IMAGES, {"prompt": "one", "negative_prompt": f"two {HALF}"}, "negative_prompt"),
        (IMAGES, {"prompt": "one", "blend": {"prompt": HALF}}, "blend.prompt"),
        (IMAGES, {"prompt": "one", "blend": {HALF: 1}}, "blend"),
        ("/v1/audio/speech", {"input": HALF}, "input"),
        (VIDEOS, {"prompt": HALF}, "prompt"),
        (VIDEOS, {"prompt": "one", "negative_prompt": HALF}, "negative_prompt"),
        (IMAGES, {"prompt": "one", HALF: 1}, None),
        (VIDEOS, {"prompt": "one", HALF: 1}, None),
    ],
)
def test_half_a_character_is_refused_by_the_fields_name(run, path, fields, param):
    status, _, answer = ask(run(), path, json.dumps(fields).encode(), **{"Content-Type": "application/json"})
    error = json.loads(answer)["error"]
    assert status == 400 and error["param"] == param and error["message"].startswith(f"{param or 'body'}: ")


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize("name", ["a%00b", "%00", "..%2F..%2Fetc", "x" * 5000, "%ED%A0%80"])
def test_what_names_no_video_is_not_found(asked, method, name):
    status, body = asked(method, f"{VIDEOS}/{name}")
    assert status == 404 and set(body["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("path", "before", "field"),
    [
        (IMAGES, '"num_inference_steps": ', "num_inference_steps"),
        (IMAGES, '"guidance_interval": ', "guidance_interval"),
        (IMAGES, '"n": ', "n"),
        (VIDEOS, '"seed": ', "seed"),
    ],
)
def test_what_is_nested_deeply_is_refused(asked, path, before, field):
    for depth in (450, 900, 100_000):
        status, body = asked("POST", path, f'{{"prompt": "one", {before}{"[" * depth}{"]" * depth}}}')
        assert status == 400 and body["error"]["type"] == "invalid_request_error"
        assert depth > 900 or body["error"]["param"].startswith(field)


@pytest.mark.parametrize(("headers", "status"), [({"origin": "http://[::1"}, 403), ({"host": "[::1"}, 400)])
def test_addresses_that_are_none_are_refused(asked, headers, status):
    assert asked("POST", IMAGES, '{"prompt": "one"}', **headers)[0] == status
    assert asked("GET", "/none", **headers)[0] == (404 if "origin" in headers else 400)


def test_docs_describe_every_route_and_load_nothing_from_elsewhere(run, tmp_path):
    from tests.infra.chromium import EXECUTABLE, Page

    address = run()
    status, headers, page = ask(address, "/docs")
    assert status == 200 and "default-src 'none'" in headers["Content-Security-Policy"]
    assert b"http://" not in page and b"https://" not in page
    if EXECUTABLE is None:
        pytest.skip("no Chromium here")
    shown = Page(f"{address}/docs", tmp_path / "profile")
    try:
        shown.resize(380, 800)
        shown.wait_for("document.querySelectorAll('details').length >= 8")
        shown.wait_for("document.querySelectorAll('#settings code').length > 2")
        text = shown.evaluate("document.body.textContent")
        fields = ("/v1/images/edits", "negative_prompt", "partial_images", "multipart", "solver")
        assert all(field in text for field in fields)
        assert shown.evaluate("document.documentElement.scrollWidth") <= 380
        assert [url for url in shown.requests if not url.startswith((address, "data:", "about:"))] == []
        assert shown.problems == []
    finally:
        shown.close()
