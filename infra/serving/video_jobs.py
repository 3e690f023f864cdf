"""Films are made by jobs: a store of them in a folder that every API replica sees, and who works them off.

A job is a file, and so are its film and the latest estimate on its way. Whoever works on it holds a lease, a file whose
time it renews; a job whose lease grows old was left by a replica that died, and the next one that looks takes it over.
It is made of the same seed again, so that a client that polls sees only that it took longer. Nothing that a job needs
is in memory alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

from pydantic import Field

from components.config import Strict
from components.files import write_whole
from infra.config import ServeConfig
from infra.serving.api_error import ApiError
from infra.serving.backend import Backend
from infra.serving.orders import SampleRequest

NUM_PREVIEWS = 8  # estimates of a film on its way
LOOK_EVERY = 0.5  # seconds between two looks for jobs
RENEW_EVERY, LEASE = 2.0, 10.0  # seconds between two renewals of a lease, and until it counts as left
PUT_OFF = 60.0  # seconds for which a job is let be whose end cannot be written, as on a full disk
TRY_AGAIN = (429, 503, 504)  # answers of a backend that is full or whose replica is being replaced
PATIENCE = 900.0  # seconds from a job's first try, after which it is not tried again; it may have waited long before

logger = logging.getLogger("ray.serve")


class Job(Strict):
    """One film, as OpenAI's clients know it, and the order that it is made of. `owner`: the digest of the API key."""

    id: str
    order: SampleRequest
    model: str
    prompt: str
    seconds: str
    frames: int = 0  # 0 of jobs from before frames were kept
    size: str
    created_at: int
    at: float = Field(default_factory=time.time)  # the same, to the order of jobs
    owner: str = ""
    status: Literal["queued", "in_progress", "completed", "failed"] = "queued"
    progress: int = 0
    completed_at: int | None = None
    expires_at: int | None = None
    error: dict[str, str] | None = None

    @property
    def ended(self) -> bool:
        return self.status in ("completed", "failed")

    def card(self) -> dict:
        """As the API tells it."""
        told = self.model_dump(mode="json", exclude={"order", "owner", "at", "frames"})
        return {**told, "object": "video", "remixed_from_video_id": None, "seed": self.order.seed}


class JobStore:
    """Jobs in a folder: at most `most` of them, those that ended for `keep` seconds."""

    def __init__(self, folder: Path, most: int, keep: float):
        self.folder, self.most, self.keep = folder, most, keep

    def add(self, job: Job) -> None:
        """Raises ApiError while as many jobs as may be are waiting; of those that ended the oldest make room."""
        jobs = self.all()
        for old in [one for one in jobs if one.ended][: max(0, len(jobs) + 1 - self.most)]:
            self.remove(old.id)
        if sum(not one.ended for one in jobs) >= self.most:
            message = "too many videos are waiting to be made; try again later"
            raise ApiError(429, message, kind="rate_limit_error", code="queue_full", retry_after=10)
        self.put(job)

    def put(self, job: Job) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.folder / f"{job.id}.json", job.model_dump_json())

    def get(self, name: str) -> Job | None:
        try:
            job = Job.model_validate_json((self.folder / f"{Path(name).name}.json").read_text())
        except (OSError, ValueError):  # no such file, no name of one, or no job in it
            return None
        if job.expires_at is not None and job.expires_at < time.time():
            self.remove(job.id)
            return None
        return job

    def all(self) -> list[Job]:
        """The oldest first."""
        found = [self.get(path.stem) for path in self.folder.glob("video_*.json")]
        return sorted((job for job in found if job is not None), key=lambda job: (job.at, job.id))

    def remove(self, name: str) -> None:
        for path in self.folder.glob(f"{name}.*"):
            path.unlink(missing_ok=True)

    def film(self, job: Job, is_final: bool = True) -> Path:
        return self.folder / f"{job.id}.{'film' if is_final else 'estimate'}.{job.order.output_format}"

    def claim(self, job: Job) -> bool:
        """Whether the job is the caller's from now on: it had no lease, or one that nobody renewed."""
        lease = self._lease(job)
        try:
            if time.time() - lease.stat().st_mtime < LEASE:
                return False
            lease.rename(taken := lease.with_suffix(f".{uuid.uuid4().hex}"))  # of several that try one succeeds
            taken.unlink()
        except OSError:
            pass
        try:
            os.close(os.open(lease, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        now = self.get(job.id)
        if now is None or now.ended:  # since the caller read it, and the lease went with its end
            self.release(job)
            return False
        return True

    def renew(self, job: Job) -> bool:
        """False of a job that was deleted meanwhile."""
        with contextlib.suppress(OSError):
            os.utime(self._lease(job))
        return self.has(job)

    def has(self, job: Job) -> bool:
        return (self.folder / f"{job.id}.json").is_file()

    def release(self, job: Job) -> None:
        self._lease(job).unlink(missing_ok=True)

    def _lease(self, job: Job) -> Path:
        return self.folder / f"{job.id}.lease"


class Worker:
    """Works jobs off, `at_once` of them at a time, so that images find room between films."""

    def __init__(self, store: JobStore, backend: Backend, config: ServeConfig):
        self.store, self.backend, self.at_once = store, backend, config.videos_at_once
        self._looking: asyncio.Task | None = None
        self._running: set[asyncio.Task] = set()
        self._put_off: dict[str, float] = {}  # jobs' ids, until a time.monotonic()
        self._unserved: dict[str, float] = {}  # those of versions that are not served, since a time.monotonic()

    def start(self) -> None:
        """In the running loop; does nothing where it has begun."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.get_running_loop().create_task(self._look())

    @contextlib.asynccontextmanager
    async def lifespan(self, app: object) -> AsyncIterator[None]:
        """Of the application: jobs that another one left are gone on with before any request comes."""
        self.start()
        yield
        for task in (self._looking, *self._running):
            task.cancel()

    async def _look(self) -> None:
        while True:
            jobs = await asyncio.to_thread(self.store.all)
            await self._note_unserved(jobs)
            self._put_off = {job.id: self._put_off[job.id] for job in jobs if job.id in self._put_off}
            for job in jobs:
                if len(self._running) >= self.at_once:
                    break
                if not job.ended and not self._may_come(job) and self._claim(job):
                    task = asyncio.create_task(self._work(job))
                    self._running.add(task)
                    task.add_done_callback(self._running.discard)
            await asyncio.sleep(LOOK_EVERY)

    async def _note_unserved(self, jobs: list[Job]) -> None:
        """Since when versions of jobs are missing: one may be on its way up, and takes nobody's place meanwhile."""
        try:
            served = {model.key for model in await self.backend.served()}
        except ApiError:  # there is none yet
            served = set()
        missing = [job.id for job in jobs if not job.ended and job.order.model not in served]
        self._unserved = {name: self._unserved.get(name, time.monotonic()) for name in missing}

    def _may_come(self, job: Job) -> bool:
        """Whether the version of a job is waited for; what it is not waited for any more ends at its first try."""
        return time.monotonic() - self._unserved.get(job.id, -math.inf) < PATIENCE

    def _claim(self, job: Job) -> bool:
        try:
            return time.monotonic() >= self._put_off.get(job.id, 0.0) and self.store.claim(job)
        except OSError as error:
            self._let_be(job, error)
            return False

    def _let_be(self, job: Job, error: Exception) -> None:
        """For a while; told in the log once for each job."""
        if job.id not in self._put_off:
            logger.error("%s: nothing can be written of it, it is tried again every %g s: %s", job.id, PUT_OFF, error)
        self._put_off[job.id] = time.monotonic() + PUT_OFF

    async def _work(self, job: Job) -> None:
        making = asyncio.create_task(self._make(job))
        try:
            while not making.done():
                await asyncio.wait({making}, timeout=RENEW_EVERY)
                if not self.store.renew(job):
                    making.cancel()  # deleted: its rows are freed
                    break
            (failure,) = await asyncio.gather(making, return_exceptions=True)
            if isinstance(failure, Exception):
                self._let_be(job, failure)
        finally:
            making.cancel()
            self.store.release(job)
            if not self.store.has(job):  # what was written while it was being deleted
                self.store.remove(job.id)

    async def _make(self, job: Job) -> None:
        """Ends the job, however its film fares. Raises OSError where that cannot be written."""
        until = time.monotonic() + (0.0 if job.id in self._unserved else PATIENCE)
        while True:
            try:
                film = await self._film(job)
                if self.store.has(job):
                    write_whole(self.store.film(job), film)
            except ApiError as error:
                if error.status in TRY_AGAIN and time.monotonic() < until:
                    await asyncio.sleep(error.retry_after or 1)
                    continue
                told = error.body["error"]
                self._end(job, "failed", error={"code": str(told.get("code") or "failed"), "message": told["message"]})
                return
            except Exception:  # whatever it was, the job ends and tells so
                if job.id not in self._put_off:
                    logger.exception("%s failed", job.id)
                self._end(job, "failed", error={"code": "server_error", "message": "the server's log says why"})
                return
            self._end(job, "completed", progress=100)
            return

    async def _film(self, job: Job) -> bytes:
        """The encoded film; estimates are stored on the way."""
        order = job.order.model_copy(update={"asked_at": time.time(), "num_previews": NUM_PREVIEWS})
        updates = self.backend.stream([order])
        async with contextlib.aclosing(updates):
            async for _, update in updates:
                if update.final:
                    return update.image
                if update.image and self.store.renew(job):
                    write_whole(self.store.film(job, is_final=False), update.image)
                    self._put(job, status="in_progress", progress=min(99, round(100 * update.progress)))
        raise ApiError(503, "the sampler is being replaced", kind="server_error", retry_after=1)

    def _end(self, job: Job, status: str, **facts) -> None:
        now = int(time.time())
        self._put(job, status=status, completed_at=now, expires_at=now + round(self.store.keep), **facts)
        self.store.film(job, is_final=False).unlink(missing_ok=True)

    def _put(self, job: Job, **facts) -> None:
        """Unless it was deleted."""
        if self.store.renew(job):
            self.store.put(job.model_copy(update=facts))
