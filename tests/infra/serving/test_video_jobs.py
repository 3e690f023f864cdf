"""Jobs of films and who works them off, without HTTP."""

import asyncio
import time
from types import SimpleNamespace

import pytest

from infra.config import ServeConfig
from infra.serving import video_jobs
from infra.serving.api_error import ApiError
from infra.serving.backend import Update
from infra.serving.video_jobs import Job, JobStore, Worker


def job_of(name: str, model: str = "m", at: float = 0.0) -> Job:
    order = {"model": model, "seed": 0, "settings": {}, "group": "g"}
    return Job(id=name, order=order, model=model, prompt="", seconds="1", size="8x8", created_at=0, at=at)


def test_the_store_is_bounded_and_forgets(tmp_path):
    job = job_of("video_0")
    store = JobStore(tmp_path, 2, 3600)
    for number in range(2):
        store.add(job.model_copy(update={"id": f"video_{number}", "at": number}))
    with pytest.raises(ApiError, match="too many videos are waiting"):
        store.add(job.model_copy(update={"id": "video_2"}))
    store.put(job.model_copy(update={"status": "completed", "expires_at": int(time.time()) + 60}))
    store.film(job).write_bytes(b"film")
    store.add(job.model_copy(update={"id": "video_3", "at": 3}))
    assert [one.id for one in store.all()] == ["video_1", "video_3"] and not store.film(job).exists()
    store.put(job.model_copy(update={"id": "video_1", "status": "failed", "expires_at": int(time.time()) - 1}))
    assert store.get("video_1") is None and [one.id for one in store.all()] == ["video_3"]
    assert store.get("../../etc/passwd") is None


def test_a_job_that_ended_since_it_was_read_is_not_claimed(tmp_path):
    store, read = JobStore(tmp_path, 200, 3600), job_of("video_0")
    store.put(read)
    assert store.claim(read)
    store.put(read.model_copy(update={"status": "completed"}))
    store.release(read)
    assert not store.claim(read) and store.get("video_0").status == "completed"
    store.remove("video_0")
    assert not store.claim(read) and not any(tmp_path.iterdir())


class Backend:
    """Serves the version `new` alone."""

    async def served(self):
        return (SimpleNamespace(key="new"),)

    async def stream(self, orders):
        if orders[0].model != "new":
            raise ApiError(503, "the sampler is being replaced; try again", retry_after=None)
        yield 0, Update(1.0, b"film", final=True)


def test_films_of_a_version_that_is_gone_hold_up_no_others(tmp_path, monkeypatch):
    monkeypatch.setattr(video_jobs, "LOOK_EVERY", 0.01)
    store = JobStore(tmp_path, 200, 3600)
    for number, model in enumerate(("old", "old", "new")):
        store.put(job_of(f"video_{number}", model, at=number))

    def statuses() -> list[str]:
        return [job.status for job in store.all()]

    async def work() -> None:
        worker = Worker(store, Backend(), ServeConfig(videos_at_once=1))
        async with worker.lifespan(None):
            await until(lambda: statuses()[2] == "completed")
            assert statuses()[:2] == ["queued", "queued"], "their version may be on its way up"
            monkeypatch.setattr(video_jobs, "PATIENCE", 0.0)
            await until(lambda: statuses() == ["failed", "failed", "completed"])

    async def until(condition) -> None:
        while not condition():
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(work(), 30))
