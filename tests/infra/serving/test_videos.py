"""OpenAI's videos API by its own client: jobs that are made, polled, fetched, listed, deleted, and that outlive who
works on them."""

from __future__ import annotations

import base64
import io
import json
import logging
import threading
import time

import numpy as np
import openai
import pytest
import torch
from PIL import Image

from components import files
from components.artifacts import run_folder
from components.data.media.video import MEDIUM
from components.families.base import Family
from components.sampling.requests import Conditions, Request
from components.training.ema import copy_of
from components.training.loop import State
from infra.config import ServeConfig
from infra.serving import http_api, uploads, video_jobs, video_routes
from infra.serving.api_error import ApiError
from infra.serving.http_guards import digest
from infra.serving.video_jobs import JobStore
from tests.components.helpers import build, tiny_data
from tests.infra.chromium import EXECUTABLE, Page
from tests.infra.local import LocalBackend, ask, client, free_port, serving

SETTINGS = {"num_inference_steps": 4, "seed": 7}


def write_film_sampler(folder, rate: float = MEDIUM.rate) -> Family:
    """A sampler of films of 5 frames 8x8 of three classes, of random weights."""
    data = tiny_data("video_diffusion")
    decoded = data.autoencoder.data.model_copy(update={"rate": rate})
    autoencoder = data.autoencoder.model_copy(update={"data": decoded})
    family = build("video_diffusion", data=data.model_copy(update={"autoencoder": autoencoder}))
    for name, parameter in family.nets.named_parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(len(name)))
    average = copy_of(family.nets)
    state = State(step=1, nets=average, optimizers={}, average=average)
    provenance = run_folder.Provenance(data="data", code="code", job="job", seed=0, step=1)
    run_folder.write(folder, "video_diffusion", family, state, provenance)
    return family


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "film"
    write_film_sampler(folder)
    backend = LocalBackend(folder, ServeConfig(), pause=0.002)
    yield backend
    backend.engine.stop(timeout=30)


@pytest.fixture
def run(films, tmp_path, monkeypatch):
    monkeypatch.setattr(video_jobs, "LOOK_EVERY", 0.02)
    monkeypatch.setattr(video_jobs, "RENEW_EVERY", 0.05)
    opened = []

    def start(backend=films, keys=(), **fields):
        config = ServeConfig(port=free_port(), videos=str(tmp_path / "videos"), **fields)
        opened.append(serving(backend, config, keys))
        return opened[-1].__enter__()

    yield start
    for server in opened:
        server.__exit__(None, None, None)


def test_a_film_is_made_polled_fetched_listed_and_deleted(run, films, tmp_path):
    api = client(run()).videos
    made = api.create(prompt="one", extra_body=SETTINGS)
    assert made.object == "video" and made.status == "queued" and made.size == "8x8" and made.seconds == "0.625"
    done = api.poll(made.id, poll_interval_ms=20)
    assert done.status == "completed" and done.progress == 100 and done.expires_at > done.completed_at
    content = api.download_content(made.id).read()
    (tmp_path / "a.mp4").write_bytes(content)
    settings = films.family.Settings(num_inference_steps=4)
    expected = films.family.sample(Request(torch.tensor([7]), settings, Conditions(label=torch.tensor([1]))))
    found = MEDIUM.to_floats(torch.from_numpy(MEDIUM.read(tmp_path / "a.mp4", (1, 5, 8, 8))))
    assert (found - expected[0]).abs().mean() < 0.05, "what the sampler makes of this seed"
    sheet = Image.open(io.BytesIO(api.download_content(made.id, variant="spritesheet").read()))
    assert sheet.size == (5 * 8, 8)
    assert Image.open(io.BytesIO(api.download_content(made.id, variant="thumbnail").read())).size == (8, 8)
    other = api.create_and_poll(prompt="two", seconds="0.1", extra_body={"output_format": "gif", **SETTINGS})
    assert other.seconds == "0.125", "a still"
    guided = {**SETTINGS, "guidance_scale": 3.0, "guidance_interval": [0.5, 9.0]}  # a form writes a list into names
    assert api.delete(api.create_and_poll(prompt="two", extra_body=guided).id).deleted
    assert films.orders[-1].settings["guidance_interval"] == [0.5, 9.0]
    assert [job.id for job in api.list()] == [other.id, made.id] and not api.list(limit=2).has_more
    first = api.list(order="asc", limit=1)
    assert [job.id for job in first.data] == [made.id] and first.has_more
    assert [job.id for job in api.list(order="asc", after=made.id).data] == [other.id]
    assert api.delete(made.id).deleted
    for gone in (made.id, "video_nobody"):
        with pytest.raises(openai.NotFoundError, match=f"after: no '{gone}' here") as refused:
            api.list(after=gone)
        assert refused.value.body["param"] == "after"
    with pytest.raises(openai.NotFoundError):
        api.retrieve(made.id)
    with pytest.raises(openai.BadRequestError, match="seconds: "):
        api.create(prompt="one", extra_body={"seconds": True})
    assert [job.id for job in api.list()] == [other.id]


@pytest.mark.parametrize("rate", [4.0, 24.0])
def test_frames_of_films_of_any_rate_are_shown(run, tmp_path, rate):
    write_film_sampler(tmp_path / "film", rate)
    backend = LocalBackend(tmp_path / "film", ServeConfig())
    api = client(run(backend)).videos
    for frames, asked in ((5, {}), (1, {"seconds": f"{1 / rate:g}"})):
        done = api.create_and_poll(prompt="one", poll_interval_ms=20, extra_body=SETTINGS, **asked)
        assert done.seconds == f"{frames / rate:g}" and not hasattr(done, "frames")
        content = io.BytesIO(api.download_content(done.id).read())
        film = MEDIUM.at(rate).read(content, (3, frames, 8, 8))
        for variant, shown in (("thumbnail", film[:, :1]), ("spritesheet", film)):
            picture = Image.open(io.BytesIO(api.download_content(done.id, variant=variant).read()))
            assert np.array_equal(np.asarray(picture), np.concatenate(np.moveaxis(shown, 0, -1), axis=1))
    backend.engine.stop(timeout=30)


def test_a_film_begins_with_the_picture_that_it_is_given(run, films):
    picture = io.BytesIO()
    Image.fromarray(np.full((8, 8), 220, np.uint8)).save(picture, "PNG")
    api = client(run()).videos
    made = api.create(prompt="one", input_reference=("a.png", picture.getvalue(), "image/png"), extra_body=SETTINGS)
    assert api.poll(made.id, poll_interval_ms=20).status == "completed"
    assert films.orders[-1].first is not None
    with pytest.raises(openai.BadRequestError, match="input_reference: expected a whole PNG"):
        api.create(prompt="one", input_reference=("a.png", b"nothing", "image/png"))


def test_pictures_of_images_and_films_are_opened_by_one_decoder_beside_the_event_loop(run, monkeypatch):
    opened, decoders = [], []

    class Decoder(uploads.Decoder):
        def __init__(self, *limits):
            super().__init__(*limits)
            decoders.append(self)

    def open_image(*args):
        opened.append((threading.current_thread().name, decoders[-1]._pixels))
        return uploads.open_image(*args)

    monkeypatch.setattr(uploads, "Decoder", Decoder)
    monkeypatch.setattr(video_routes, "open_image", open_image)
    api = client(run(max_pixels=200)).videos
    pictures = [io.BytesIO(), io.BytesIO()]
    for buffer, side in zip(pictures, (12, 20), strict=True):
        Image.new("L", (side, 10)).save(buffer, "PNG")
    small, large = (("a.png", buffer.getvalue(), "image/png") for buffer in pictures)
    api.create(prompt="one", input_reference=small, extra_body=SETTINGS)
    assert opened == [("decoder_0", 120)] and len(decoders) == 1 and decoders[0]._pixels == 0
    decoders[0]._pixels = decoders[0].in_flight
    with pytest.raises(openai.RateLimitError, match="too many images are being opened"):
        api.create(prompt="one", input_reference=large, extra_body=SETTINGS)
    assert len(opened) == 1


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"prompt": "seven"}, "prompt: "),
        ({"prompt": "one", "seconds": "8"}, "seconds: expected up to 0.625, found '8'"),
        ({"prompt": "one", "seconds": "soon"}, "seconds: expected up to 0.625, found 'soon'"),
        ({"prompt": "one", "size": "1280x720"}, "size: expected '8x8' or 'auto'"),
        ({"prompt": "one", "extra_body": {"output_format": "avi"}}, "output_format: "),
        ({"prompt": "one", "extra_body": {"input_reference": {"image_url": "http://x/y.png"}}}, "data URL of an image"),
        ({"prompt": "one", "extra_body": {"input_reference": {"image_url": {"a": 1}}}}, "data URL of an image"),
        ({"prompt": "one", "extra_body": {"guidance_interval": [5.0, 0.2]}}, "guidance_interval: expected 0 <= first"),
    ],
)
def test_what_cannot_be_made_is_refused_in_a_line(run, fields, told):
    api = client(run()).videos
    with pytest.raises(openai.BadRequestError, match=told):
        api.create(**fields)
    assert not list(api.list())


def test_a_sampler_of_images_makes_no_videos_and_one_of_videos_no_images(run, backend):
    with pytest.raises(openai.BadRequestError, match="makes images; expected a model of videos"):
        client(run(backend)).videos.create(prompt="one")
    with pytest.raises(openai.BadRequestError, match="makes videos; expected a model of images"):
        client(run()).images.generate(prompt="one")


class Dying:
    """A backend whose replica is lost in the first films, as Serve's is told."""

    def __init__(self, backend, times: int):
        self.backend, self.times = backend, times

    def __getattr__(self, name):
        return getattr(self.backend, name)

    async def stream(self, orders):
        async for item in self.backend.stream(orders):
            if self.times and item[1].image:
                self.times -= 1
                raise ApiError(503, "the sampler is being replaced; try again", retry_after=None)
            yield item


def test_a_job_survives_its_samplers_death(run, films, tmp_path, monkeypatch):
    monkeypatch.setattr(video_jobs.asyncio, "sleep", quickly(video_jobs.asyncio.sleep))
    dying = Dying(films, 2)
    api = client(run(dying)).videos
    lost = api.create_and_poll(prompt="one", poll_interval_ms=20, extra_body={"output_format": "gif", **SETTINGS})
    assert lost.status == "completed" and dying.times == 0
    whole = api.create_and_poll(prompt="one", poll_interval_ms=20, extra_body={"output_format": "gif", **SETTINGS})
    assert api.download_content(lost.id).read() == api.download_content(whole.id).read(), "the same film"


def test_a_job_that_waited_long_is_tried_again_and_not_for_ever(run, films, tmp_path, monkeypatch):
    monkeypatch.setattr(video_jobs.asyncio, "sleep", quickly(video_jobs.asyncio.sleep))
    dying = Dying(films, 1)
    api, store = client(run(dying)).videos, JobStore(tmp_path / "videos", 200, 3600)
    done = store.get(api.create_and_poll(prompt="one", poll_interval_ms=20, extra_body=SETTINGS).id)
    old = {"status": "queued", "created_at": done.created_at - 1000, "at": done.at - 1000, "expires_at": None}
    for name, times, status in (("video_old", 1, "completed"), ("video_late", 1000, "failed")):
        dying.times = times
        monkeypatch.setattr(video_jobs, "PATIENCE", 900.0 if status == "completed" else 0.1)
        store.put(done.model_copy(update={"id": name, **old}))
        assert api.poll(name, poll_interval_ms=20).status == status


def wait_for(condition):
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def quickly(sleep):
    async def shorter(seconds):
        await sleep(min(seconds, 0.02))

    return shorter


def test_a_job_survives_the_death_of_the_api_that_took_it(run, films, tmp_path, monkeypatch):
    address = run(videos_at_once=1)
    api = client(address).videos
    made = api.create_and_poll(prompt="one", poll_interval_ms=20, extra_body=SETTINGS)
    store = JobStore(tmp_path / "videos", 200, 3600)
    done = store.get(made.id)
    left = done.model_copy(update={"id": "video_left", "status": "in_progress", "expires_at": None})
    store.put(left)
    assert store.claim(left), "as one that died would have"
    assert not store.claim(left)
    monkeypatch.setattr(video_jobs, "LEASE", 0.1)
    assert api.poll(left.id, poll_interval_ms=20).status == "completed", "whoever looks takes it over"


@pytest.mark.parametrize("part", ["film", "estimate", "lease"])
def test_on_a_full_disk_a_job_is_let_be_for_a_while(run, films, tmp_path, monkeypatch, caplog, part):
    store, full, tried = JobStore(tmp_path / "videos", 200, 3600), [part], []

    class Store(JobStore):
        def claim(self, job):
            tried.append(time.monotonic())
            if "lease" in full:
                raise OSError(28, "No space left on device")
            return super().claim(job)

    def write_whole(path, content):
        if full and (path.name.split(".")[1] == part or '"status":"failed"' in str(content)):
            raise OSError(28, "No space left on device")
        files.write_whole(path, content)

    monkeypatch.setattr(http_api, "JobStore", Store)
    monkeypatch.setattr(video_jobs, "write_whole", write_whole)
    monkeypatch.setattr(video_jobs, "logger", logging.getLogger("tests.videos"))
    monkeypatch.setattr(video_jobs, "PUT_OFF", 0.4)
    api, before = client(run()).videos, len(films.orders)
    made = api.create(prompt="one", extra_body=SETTINGS)
    wait_for(lambda: len(tried) == 4)
    assert min(np.diff(tried)) >= 0.4 and len(films.orders) - before in ((0,) if part == "lease" else (3, 4))
    assert store.get(made.id).status in ("queued", "in_progress")
    told = [record.getMessage() for record in caplog.records if record.name == "tests.videos"]
    assert len([line for line in told if "tried again every 0.4 s: [Errno 28] No space" in line]) == 1
    assert len(told) == (1 if part == "lease" else 2)
    full.clear()
    assert api.poll(made.id, poll_interval_ms=20).status == "completed"


@pytest.mark.parametrize("part", ["film", "estimate"])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_nothing_is_left_of_a_film_that_is_deleted_as_it_is_written(run, tmp_path, monkeypatch, part, moment):
    store, deleted = JobStore(tmp_path / "videos", 200, 3600), []

    def write_whole(path, content):
        name, kind = path.name.split(".")[:2]
        if moment == "after":
            files.write_whole(path, content)
        if kind == part:
            store.remove(name)
            deleted.append(name)
        if moment == "before":
            files.write_whole(path, content)

    monkeypatch.setattr(video_jobs, "RENEW_EVERY", 600.0)
    monkeypatch.setattr(video_jobs, "write_whole", write_whole)
    made = client(run()).videos.create(prompt="one", extra_body=SETTINGS)
    wait_for(lambda: deleted and not any(store.folder.iterdir()))
    assert deleted[0] == made.id


def test_a_film_that_is_deleted_before_it_is_whole_is_not_written(run, films, tmp_path, monkeypatch):
    store, written = JobStore(tmp_path / "videos", 200, 3600), []

    class Deleting(Dying):
        async def stream(self, orders):
            async for item in self.backend.stream(orders):
                if item[1].final:
                    self.times -= 1
                    store.remove(made.id)
                yield item

    def write_whole(path, content):
        written.append(path.name.split(".")[1])
        files.write_whole(path, content)

    monkeypatch.setattr(video_jobs, "RENEW_EVERY", 600.0)
    monkeypatch.setattr(video_jobs, "write_whole", write_whole)
    deleting = Deleting(films, 1)
    made = client(run(deleting)).videos.create(prompt="one", extra_body=SETTINGS)
    wait_for(lambda: not deleting.times and not any(store.folder.iterdir()))
    assert "film" not in written


def test_jobs_belong_to_the_key_that_made_them(run):
    address = run(keys=(digest("a"), digest("b")))
    made = client(address, "a").videos.create(prompt="one", extra_body=SETTINGS)
    with pytest.raises(openai.NotFoundError):
        client(address, "b").videos.retrieve(made.id)
    assert not list(client(address, "b").videos.list()) and len(list(client(address, "a").videos.list())) == 1
    assert ask(address, "/v1/videos")[0] == 401


def test_without_keys_jobs_belong_to_everybody(run):
    guarded, free = run(keys=(digest("a"),)), run()
    ids = {client(address, "a").videos.create(prompt="one", extra_body=SETTINGS).id for address in (guarded, free)}
    listed = json.loads(ask(free, "/v1/videos")[2])["data"]
    assert {job["id"] for job in listed} == ids, "what was made with a key among them"
    for name in ids:
        assert ask(free, f"/v1/videos/{name}")[0] == 200, "a page sends no key"
        assert client(free, "b").videos.retrieve(name).id == name, "and OpenAI's client any"
        assert client(free, "c").videos.delete(name).deleted


@pytest.mark.skipif(EXECUTABLE is None, reason="no Chromium here")
def test_the_page_plays_films_that_loop(run, tmp_path):
    page = Page(run(), tmp_path / "profile")
    try:
        page.wait_for("document.querySelectorAll('#classes button').length == 3")
        page.evaluate("document.getElementById('n').value = 2, document.getElementById('generate').click()")
        page.wait_for("document.querySelectorAll('#gallery figure:not(.busy) img').length == 2")
        sources = page.evaluate("[...document.querySelectorAll('#gallery img')].map((image) => image.src).join(' ')")
        for source in sources.split(" "):
            clip = Image.open(io.BytesIO(base64.b64decode(source.removeprefix("data:image/gif;base64,"))))
            assert clip.n_frames == 5 and clip.info["loop"] == 0
        assert "films made" in page.evaluate("document.getElementById('status').textContent")
        assert "/v1/videos" in page.evaluate("document.getElementById('curl').textContent")
        assert page.evaluate("document.getElementById('upload-field').hidden") and page.problems == []
    finally:
        page.close()
