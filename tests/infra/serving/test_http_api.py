import hashlib
import json
import pickle
import socket
import time
from importlib import resources

import openai
import pytest

from components.errors import ConfigError
from infra.config import ServeConfig
from infra.serving.api_error import ApiError
from infra.serving.http_guards import KEYS_VARIABLE, digest, read_keys
from tests.infra.chromium import EXECUTABLE, Page
from tests.infra.local import LocalBackend, ask, client

KEY = "sk-4f1c2d"


def test_keys(run):
    address = run(keys=(digest("another"), digest(KEY)))
    assert client(address, KEY).models.retrieve("latent-foundry")
    for wrong in (KEY[:-1], KEY.upper(), digest(KEY)):
        with pytest.raises(openai.AuthenticationError) as refused:
            client(address, wrong).images.generate(prompt="one")
        assert refused.value.code == "invalid_api_key"
    assert ask(address)[0] == 401 and ask(address, Authorization=f"Basic {KEY}")[0] == 401
    assert ask(address, "/")[0] == 200 and ask(address, "/healthz")[0] == 200  # the page asks for the key


def test_keys_are_read_from_file_and_environment(tmp_path, monkeypatch):
    file = tmp_path / "keys"
    file.write_text(f"# laptops\n{digest('a')}  # of the first\n\n{digest('b').upper()}\n")
    monkeypatch.setenv(KEYS_VARIABLE, digest("c"))
    keys = read_keys(ServeConfig(host="0.0.0.0", api_keys=str(file)))
    assert set(keys) == {hashlib.sha256(key).hexdigest() for key in (b"a", b"b", b"c")}


def test_without_keys_only_loopback_is_served(tmp_path, monkeypatch):
    monkeypatch.delenv(KEYS_VARIABLE, raising=False)
    assert read_keys(ServeConfig()) == ()
    with pytest.raises(ConfigError, match="serve.host: 0.0.0.0 .* API keys are needed"):
        read_keys(ServeConfig(host="0.0.0.0"))
    with pytest.raises(ConfigError, match="none: No such file"):
        read_keys(ServeConfig(api_keys=str(tmp_path / "none")))
    (tmp_path / "plain").write_text("sk-plain\n")
    with pytest.raises(ConfigError, match="expected SHA-256 digests") as refused:
        read_keys(ServeConfig(api_keys=str(tmp_path / "plain")))
    assert "sk-plain" not in str(refused.value)


@pytest.mark.parametrize(
    ("allowed", "host", "status"),
    [
        ((), "127.0.0.1:80", 200),
        ((), "localhost", 200),
        ((), "[::1]:8000", 200),
        ((), "rebound.example", 400),
        (("images.example",), "images.example:443", 200),
        (("images.example",), "localhost", 400),
        (("*",), "anything.example", 200),
    ],
)
def test_hosts(run, allowed, host, status):
    answered, _, answer = ask(run(allowed_hosts=allowed), Host=host)
    assert answered == status
    assert status == 200 or json.loads(answer)["error"]["param"] == "host"


def test_other_origins(run):
    address = run(cors_origins=("https://studio.example",))
    asked = {"Origin": "https://studio.example"}
    assert ask(address, **asked)[1]["access-control-allow-origin"] == "https://studio.example"
    assert "access-control-allow-origin" not in ask(address, Origin="https://other.example")[1]
    assert "access-control-allow-origin" not in ask(run(), **asked)[1]


def test_a_body_of_unknown_length_is_limited_too(run):
    address = run(max_body=1000)
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        head = "POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        connection.sendall((head + "Transfer-Encoding: chunked\r\n\r\n").encode())
        for _ in range(3):
            connection.sendall(b"200\r\n" + b" " * 512 + b"\r\n")
        connection.sendall(b"0\r\n\r\n")
        answer = connection.recv(65536).decode()
    assert answer.startswith("HTTP/1.1 413") and "at most 1000 bytes" in answer


def test_a_failure_amid_a_stream_is_told_in_it(run, backend):
    net = backend.engine.nets["decoder"]
    shown = []

    def decoder(**inputs):
        shown.append(1)
        if len(shown) == 3:  # two previews, then the image
            raise RuntimeError("secret detail")
        return net(**inputs)

    backend.engine.nets["decoder"] = decoder
    with pytest.raises(openai.APIError, match="its log says why") as failed:
        list(client(run()).images.generate(prompt="one", stream=True, partial_images=2))
    assert "secret" not in str(failed.value) and len(shown) == 3


def test_a_failure_is_told_without_detail(run, backend):
    def broken(**inputs):
        raise RuntimeError("secret detail")

    backend.engine.nets["denoiser"] = broken
    with pytest.raises(openai.InternalServerError, match="its log says why") as failed:
        client(run()).images.generate(prompt="one")
    assert failed.value.body["type"] == "server_error" and "secret" not in str(failed.value)


def test_a_full_engine_is_told_and_the_client_comes_again(run, backend):
    backend.engine.slots, backend.engine.queue = 1, 0
    address = run(max_steps=1000)
    blocking = client(address).images.generate(prompt="one", stream=True, extra_body={"num_inference_steps": 1000})
    with pytest.raises(openai.RateLimitError, match="queue is full") as refused:
        client(address).images.generate(prompt="one")
    assert refused.value.response.headers["retry-after"] == "1" and refused.value.code == "queue_full"
    with pytest.raises(openai.RateLimitError):  # before the stream begins, so that the status can tell
        client(address).images.generate(prompt="one", stream=True)
    blocking.close()
    assert client(address, retries=5).images.generate(prompt="one").data[0].b64_json


def test_a_reader_who_leaves_a_stream_ends_the_work(run, backend):
    stream = client(run(max_steps=1000)).images.generate(
        prompt="one", n=2, stream=True, partial_images=3, extra_body={"num_inference_steps": 400}
    )
    next(iter(stream))
    stream.close()
    until = time.monotonic() + 60
    while backend.engine.load().active:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert len(backend.submitted) == 2 and all(future.cancelled() for future in backend.submitted)


def test_one_image_that_fails_ends_its_request(run, backend):
    def refuse(order, **options):
        if order.seed == 11:
            raise ApiError(429, "full", retry_after=1)
        return LocalBackend._submit(backend, order, **options)

    backend._submit = refuse
    with pytest.raises(openai.RateLimitError):
        client(run()).images.generate(prompt="one", n=3, extra_body={"seed": 10})
    assert backend.submitted and all(future.cancelled() for future in backend.submitted)


@pytest.mark.skipif(EXECUTABLE is None, reason="no Chromium here")
def test_the_pages_bar_nobody(run, tmp_path):
    """Contrast, names, labels and order, as axe judges them, by day and by night."""
    axe = (resources.files(pytest.importorskip("axe_core_python")) / "axe.min.js").read_text()
    address = run()
    page = Page(address, tmp_path / "profile")
    try:
        page.resize(1280, 900)
        page.wait_for("document.querySelectorAll('#classes button').length == 3")
        page.evaluate("document.getElementById('generate').click()")
        page.wait_for("document.querySelectorAll('#gallery figure:not(.busy) img').length == 4")
        found = {}
        for path in ("/", "/docs"):
            page.visit(f"{address}{path}")
            page.wait_for("document.querySelectorAll('main *').length > 5")
            page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
            for scheme in ("light", "dark"):
                page.prefer(scheme)
                found[path, scheme] = page.barriers(axe)
        assert not any(found.values()), found
        page.evaluate("document.querySelector('main').append(new Image())")
        assert any(one.startswith("image-alt") for one in page.barriers(axe)), "it looks"
    finally:
        page.close()


@pytest.mark.skipif(EXECUTABLE is None, reason="no Chromium here")
def test_the_page(run, backend, tmp_path):
    """Makes images with previews, cancels, shows an error, edits, keeps its gallery, fits a phone, and asks nobody but
    its own server."""
    address = run(max_steps=1000)
    page = Page(address, tmp_path / "profile")
    try:
        page.resize(1400, 900)
        page.wait_for("document.querySelectorAll('#classes button').length == 3")
        made = "document.querySelectorAll('#gallery figure:not(.busy) img').length"
        page.evaluate("document.querySelectorAll('#classes button')[1].click()")
        page.evaluate("document.getElementById('seed').value = 5; document.getElementById('generate').click()")
        page.wait_for(f"{made} == 4 && document.getElementById('cancel').disabled")
        body = json.loads(page.evaluate("document.getElementById('curl').textContent").split(" -d ")[1].strip("'"))
        assert body["prompt"] == "one" and body["seed"] == 5
        shown = page.evaluate("document.querySelector('#gallery img').src").split(",")[1]
        body = json.dumps(body).encode()
        answer = json.loads(ask(address, "/v1/images/generations", body, **{"Content-Type": "application/json"})[2])
        assert answer["data"][0]["b64_json"] == shown  # the curl line is the image's own

        page.evaluate("document.querySelector('[data-setting=num_inference_steps]').max = 1000")
        page.evaluate("document.querySelector('[data-setting=num_inference_steps]').value = 1000")
        page.evaluate("document.getElementById('generate').click()")
        page.wait_for("document.querySelector('#gallery figure.busy img[src]') !== null")  # a preview
        page.evaluate("document.getElementById('cancel').click()")
        page.wait_for(f"document.querySelectorAll('#gallery figure').length == 4 && {made} == 4")
        assert page.evaluate("document.getElementById('error').textContent") == ""

        page.evaluate("document.getElementById('prompt').value = 'a cat'")
        page.evaluate("document.getElementById('generate').click()")
        page.wait_for("document.getElementById('error').textContent.includes('names no class')")

        page.evaluate("document.getElementById('prompt').value = 'two'")
        page.evaluate("document.getElementById('negative').value = 'one'")
        page.evaluate("document.querySelector('[data-setting=num_inference_steps]').value = 4")
        page.evaluate("document.getElementById('generate').click()")
        page.wait_for(f"{made} == 8 && document.getElementById('cancel').disabled")
        assert '"negative_prompt":"one"' in page.evaluate("document.getElementById('curl').textContent")

        for place, level in enumerate((0.5, 900)):  # guided between these noise levels, in JSON and in the form below
            page.evaluate(f"document.querySelectorAll('[data-setting=guidance_interval]')[{place}].value = {level}")
        page.evaluate("document.getElementById('n').value = 1; document.getElementById('generate').click()")
        page.wait_for(f"{made} == 9 && document.getElementById('cancel').disabled")
        assert '"guidance_interval":[0.5,900]' in page.evaluate("document.getElementById('curl').textContent")
        page.evaluate("document.querySelector('#gallery figure button').click()")  # enlarged; Edit takes it for a start
        text = page.evaluate("document.getElementById('viewed-text').textContent")
        assert text.startswith("two · ") and "guidance scale 2" in text
        page.evaluate("document.getElementById('vary').click()")
        page.wait_for("document.getElementById('editor').open")
        page.drag("#brush", (0.3, 0.3), (0.7, 0.5))
        page.evaluate("document.getElementById('editor-use').click()")
        page.wait_for("!document.getElementById('source').hidden")
        page.evaluate("document.getElementById('generate').click()")
        page.wait_for(f"{made} == 10 && document.getElementById('cancel').disabled")
        assert backend.orders[-1].settings["guidance_interval"] == [0.5, 900]
        assert backend.orders[-1].source.mask.count(255) > 10 and backend.orders[-1].source.mask.count(0) > 100
        page.send("Page.reload")
        page.wait_for(f"document.readyState == 'complete' && {made} == 10")  # the gallery is still there

        page.screenshot(tmp_path / "desk.png")
        page.resize(380, 800)
        page.screenshot(tmp_path / "phone.png")
        assert page.evaluate("document.documentElement.scrollWidth") <= 380
        elsewhere = [url for url in page.requests if not url.startswith((address, "data:", "about:", "blob:"))]
        assert elsewhere == []
        assert [problem for problem in page.problems if "400" not in problem] == []
    finally:
        page.close()


def test_an_error_is_the_same_after_its_way_between_processes():
    error = pickle.loads(pickle.dumps(ApiError(429, "full", code="queue_full", retry_after=3)))
    assert (error.status, str(error), error.headers) == (429, "full", {"Retry-After": "3"})
