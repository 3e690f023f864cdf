"""Ray Serve: engines in replicas, an application for each version; the API before them; what rolls versions out.

`serve run infra.serving.ray_serve:app` and Serve's config files build the API with `app`; `make serve` calls `start`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import re
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import ray
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ApplicationStatus

from components.config import Strict, parse
from components.errors import InputError, SamplerError
from components.sampling.tasks import DeadlineExceeded, EngineFull, EngineStopped
from infra.config import ServeConfig, TrackingConfig
from infra.ray_cluster import closed_session, ray_session
from infra.serving import autoscaling, http_api, http_guards, serve_metrics
from infra.serving.api_error import ApiError, Hold, queue_full
from infra.serving.backend import Made, Refused, Update
from infra.serving.model_store import Champions, ModelStore
from infra.serving.orders import SampleRequest, num_steps
from infra.serving.rollout import Rollout
from infra.serving.sampler_replica import SamplerReplica
from infra.serving.served_model import Served, ServedModel

NAME = "latent-foundry"
VERSION = f"{NAME}-version-"  # and the version's key: an application of its own
RETRY_AFTER = 1  # seconds
LATE = 5.0  # seconds after an order's own deadline, when its replica is taken for lost
START = 300.0  # seconds in which a version must be up
REMEMBERED = 0.1  # seconds for which the only engine's refusal goes for all requests as large, without asking it again
ONGOING = 10_000  # requests of one API replica: it limits them itself, and health is asked for the same way
HEALTH = {"health_check_period_s": 1, "health_check_timeout_s": 10}
# how threads of one forward wait for each other, where the environment says so: libgomp reads the first two, LLVM's and
# Intel's OpenMP the last. By default they spin, which is the fastest on a machine of one's own, and where engines share
# a machine they sleep: spinning they hold up each other (docs/RESULTS.md)
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
ASLEEP = {"OMP_WAIT_POLICY": "passive"}
LOGGING = {"encoding": "JSON"}  # a line a request: id, route, status, milliseconds; never the body

logger = logging.getLogger(__name__)
Answer = TypeVar("Answer")


@dataclass
class Refusal:
    """What an engine said of a request of a `size`, which goes for others as large for a while."""

    size: int
    hold: Hold


class Samplers:
    """The backend of the API (openai_api.py): hands each request to a replica of its version."""

    def __init__(self, deadline: float, remembered: float = 0.0):
        self.deadline, self.remembered = deadline, remembered
        self.trouble = ""
        self._served: Served = ()
        self._handles: dict[str, DeploymentHandle] = {}
        self._refused: dict[str, Refusal] = {}  # by model

    def adopt(self, served: Served) -> None:
        """Serves these from now on. May be called from any thread."""
        # those of before are kept for orders that are on their way
        known = {model.key: self._handles[model.key] for model in self._served}
        fresh = {model.key: handle_of(model) for model in served if model.key not in known}
        self._handles = known | fresh
        self._served = served

    async def served(self) -> Served:
        until = time.monotonic() + self.deadline
        while not self._served:
            if time.monotonic() > until:
                raise api_error_of(TimeoutError())
            await asyncio.sleep(0.05)
        return self._served

    async def generate(self, orders: list[SampleRequest]) -> Made:
        self._refuse_remembered(orders)
        with self._remembering(orders):
            made = self._asked(lambda: self._handle(orders).generate.remote(orders), self.deadline + LATE)
            return unless_refused(await made)

    async def stream(self, orders: list[SampleRequest]) -> AsyncIterator[tuple[int, Update]]:
        self._refuse_remembered(orders)
        until = time.monotonic() + self.deadline + LATE
        updates = self._handle(orders).options(stream=True).stream.remote(orders)
        try:
            with self._remembering(orders):
                while True:
                    yield unless_refused(await self._asked(lambda: anext(updates), until - time.monotonic()))
        except StopAsyncIteration:
            return
        finally:
            updates.cancel()

    def _refuse_remembered(self, orders: list[SampleRequest]) -> None:
        """Under overload most of a server's time would go into asking its engine what it has just said."""
        last = self._refused.get(orders[0].model)
        if last and _size(orders) >= last.size and (error := last.hold.refusal(time.monotonic())) is not None:
            raise error

    @contextlib.contextmanager
    def _remembering(self, orders: list[SampleRequest]) -> Iterator[None]:
        try:
            yield
        except ApiError as error:
            cause = error.__cause__
            if isinstance(cause, EngineFull) and cause.retry_after:
                now = time.monotonic()
                hold = Hold(now + self.remembered, now + cause.retry_after, cause.seconds)
                self._refused[orders[0].model] = Refusal(_size(orders), hold)
                if cause.hold and self.remembered and len(self._served) == 1:
                    error.hold = cause.hold, cause.seconds
            raise

    async def metrics(self, everything: bool) -> str:
        nodes = [(node["NodeManagerAddress"], node["MetricsExportPort"]) for node in ray.nodes() if node["Alive"]]
        return await asyncio.to_thread(serve_metrics.scrape, nodes, everything)

    async def check(self, model: ServedModel) -> dict[str, int]:
        return await self._asked(lambda: self._handle_of(model.key).check.remote(), 5)

    def _handle(self, orders: list[SampleRequest]) -> DeploymentHandle:
        return self._handle_of(orders[0].model)

    def _handle_of(self, key: str) -> DeploymentHandle:
        if key not in self._handles:
            raise api_error_of(LookupError(key))
        return self._handles[key]

    @staticmethod
    async def _asked(ask: Callable[[], Awaitable[Answer]], seconds: float) -> Answer:
        """An answer within time. Raises ApiError."""
        try:
            return await asyncio.wait_for(ask(), seconds)
        except (RayError, RayServeException, TimeoutError) as error:
            raise api_error_of(error) from error


def unless_refused(answer: Answer | Refused) -> Answer:
    """A replica's answer. Raises ApiError of what it answers in the place of one."""
    if isinstance(answer, Refused):
        raise api_error_of(answer.error) from answer.error
    return answer


def _size(orders: list[SampleRequest]) -> int:
    return len(orders) * max(1, num_steps(orders[0].settings))


@serve.ingress()
class Frontend(Samplers):
    """The API, and what rolls versions out behind it. It holds no weights."""

    def __init__(self, model_store: ModelStore, config: ServeConfig, keys: tuple[str, ...]):
        closed_session.keep_replica_to_loopback()
        super().__init__(config.deadline, REMEMBERED if config.replicas == 1 else 0.0)
        self.champions, self.config, self.keys = Champions(model_store), config, keys
        start = functools.partial(start_version, config=config, model_store=model_store)
        self.rollout = Rollout(start, stop_version, running, self.adopt, keep=config.keep_former)
        threading.Thread(target=self._watch, daemon=True).start()

    def __serve_build_asgi_app__(self) -> FastAPI:
        return http_api.build(self, self.config, self.keys)

    def _watch(self) -> None:
        """Brings about what shall be served, look by look."""
        look, is_whole = self._first, not self.champions.model_store.versions
        while True:
            try:
                self.rollout.step(look())
                is_whole = is_whole or look == self.champions.look  # the first is of the champion alone
                look = self.champions.look
                self.trouble = ""
            except Exception as error:  # whatever goes wrong, what is served stays, and the next look may do better
                self.trouble = f"{type(error).__name__}; the log of the replica `api` says more"
                logger.exception("no look at what shall be served")
            if self._served and is_whole and not self.config.watch_every:
                return
            time.sleep(self.config.watch_every or 1)

    def _first(self) -> Served:
        """What is there at once; a frontend in the place of a lost one goes on with what is running."""
        first, up = self.champions.first(), running()
        return first if not up or first[0].key in up else self.champions.look()


def api_error_of(error: Exception) -> ApiError:
    """What a client may know of a failure behind the API."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, EngineFull | BackPressureError):
        return queue_full(getattr(cause, "retry_after", None) or 0)
    if isinstance(cause, SamplerError):  # what the sampler cannot do, in a line
        return ApiError(400, str(cause), param=str(cause).partition(":")[0])
    if isinstance(cause, DeadlineExceeded):
        return ApiError(504, f"deadline: {cause}", kind="server_error", code="deadline_exceeded")
    if isinstance(cause, EngineStopped | TimeoutError) or not isinstance(error, RayTaskError):
        return ApiError(
            503,
            "the sampler is being replaced; try again",
            kind="server_error",
            code="unavailable",
            retry_after=RETRY_AFTER,
        )
    return ApiError(500, "the sampler failed on this request; the server's log says why", kind="server_error")


# -- an application for each version ----------------------------------------------------------------------------------


def version_app(
    model: ServedModel, config: ServeConfig, model_store: ModelStore | None = None, replica: type = SamplerReplica
) -> serve.Application:
    """The engines of one version, of which nodes without its folder get a copy by the model_store."""
    if isinstance(config.replicas, tuple):
        scaling = {
            "min_replicas": config.replicas[0],
            "max_replicas": config.replicas[1],
            "policy": {"policy_function": autoscaling.replicas_for_load},
            "look_back_period_s": 15,
            "upscale_delay_s": 5,
            "downscale_delay_s": 60,
        }
        replicas = {"autoscaling_config": scaling}
    else:
        replicas = {"num_replicas": config.replicas}
    return (
        serve.deployment(replica)
        .options(
            name="sampler",
            ray_actor_options={
                "num_cpus": 1,
                "num_gpus": config.gpu_share * ray_session.has_gpu(config.use_gpu),
                "runtime_env": {"env_vars": waiting(config)},
            },
            # above the engine's own limit, which refuses with a reason
            max_ongoing_requests=config.slots + config.queue + 64,
            **HEALTH,
            max_constructor_retry_count=3,
            logging_config=LOGGING,
            graceful_shutdown_timeout_s=config.deadline,
            **replicas,
        )
        .bind(model, config, model_store)
    )


def waiting(config: ServeConfig) -> dict[str, str]:
    """How threads of one forward wait for each other, as variables of an engine's environment."""
    told = {name: os.environ[name] for name in WAITING if name in os.environ}
    may_share = bool(config.versions) or config.replicas != 1
    return told or (ASLEEP if may_share else {})


def app_name(key: str) -> str:
    return VERSION + key


def handle_of(model: ServedModel) -> DeploymentHandle:
    return serve.get_deployment_handle("sampler", app_name(model.key))


def running() -> set[str]:
    """Keys of the versions that are up, or coming up."""
    gone = (ApplicationStatus.DELETING, ApplicationStatus.NOT_STARTED)
    found = serve.status().applications.items()
    return {name.removeprefix(VERSION) for name, app in found if name.startswith(VERSION) and app.status not in gone}


def start_version(model: ServedModel, config: ServeConfig, model_store: ModelStore) -> None:
    """Returns when its engines are up; one that is already there is waited for. Raises RuntimeError if it fails."""
    name = app_name(model.key)
    if model.key not in running():
        serve.run(version_app(model, config, model_store), name=name, route_prefix=None)
        return
    until = time.monotonic() + START
    while (status := serve.status().applications[name].status) is not ApplicationStatus.RUNNING:
        if status is ApplicationStatus.DEPLOY_FAILED or time.monotonic() > until:
            raise RuntimeError(f"{model.id}: {status.value}")
        time.sleep(0.1)


def stop_version(key: str) -> None:
    """Asks a version to end after what it has accepted."""
    with contextlib.suppress(RayServeException):  # it is gone
        serve.delete(app_name(key), _blocking=False)


# -- the whole --------------------------------------------------------------------------------------------------------


class AppConfig(Strict):
    """The arguments of `serve run` and of a Serve config file. `root` is the project's folder, seen by every node; the
    other fields are as in params.yaml. Host and port are Serve's own there, and `serve.host` says who is let in."""

    root: str = ""  # the present folder if empty
    model: str = "latent-foundry"
    promoted: str = "promoted.json"
    tracking: TrackingConfig = TrackingConfig()
    serve: ServeConfig = ServeConfig()


def app(args: dict[str, Any]) -> serve.Application:
    """`serve run infra.serving.ray_serve:app`. Raises ConfigError of arguments that are none of AppConfig's."""
    config = parse(AppConfig, args, "args")
    root = Path(config.root).resolve()
    model_store = model_store_of(root, config.model, config.promoted, config.tracking, config.serve)
    return application(model_store, config.serve, http_guards.read_keys(config.serve), num_replicas=2)


def model_store_of(root: Path, model: str, promoted: str, tracking: TrackingConfig, config: ServeConfig) -> ModelStore:
    return ModelStore(
        root=str(root),
        model=model,
        promoted=promoted,
        cache=config.cache,
        tracking=tracking,
        versions=config.versions,
    )


def application(
    model_store: ModelStore, config: ServeConfig, keys: tuple[str, ...] = (), num_replicas: int = 1
) -> serve.Application:
    """The API. `keys` are the digests of the accepted API keys; none: no key is asked for. `num_replicas`: where
    serve.api_replicas says nothing."""
    frontend = serve.deployment(Frontend).options(
        name="api",
        num_replicas=config.api_replicas or num_replicas,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=ONGOING,
        **HEALTH,
        max_surge_percent=100,  # its successor answers before it ends
        graceful_shutdown_timeout_s=config.deadline,
        logging_config=LOGGING,
    )
    return frontend.bind(model_store, config, keys)


def start(model_store: ModelStore, config: ServeConfig, keys: tuple[str, ...] = ()) -> ServedModel:
    """Serves in the connected Ray session until `stop`. Returns the champion when requests are answered. Raises
    InputError here, in the driver, if there is none or it cannot be loaded."""
    champion, *_ = Champions(model_store).first()
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    try:
        serve.start(http_options={"host": config.host, "port": config.port})
    except RayError:  # its proxy has about a minute
        raise InputError("serve: Ray Serve did not start in time; when other work is done, run it again") from None
    apps = [
        serve.RunTarget(version_app(champion, config, model_store), name=app_name(champion.key), route_prefix=None),
        serve.RunTarget(application(model_store, config, keys, num_replicas=min(2, len(ray.nodes()))), name=NAME),
    ]
    try:
        serve.run_many(apps)
        serve.get_app_handle(NAME).served.remote().result(timeout_s=START)
    except (RuntimeError, RayError) as error:
        reason = _why_not_up(app_name(champion.key)) or str(error).splitlines()[0]
        raise InputError(f"serve: {champion.id} could not be deployed ({reason})") from None
    return champion


def _why_not_up(name: str) -> str:
    """The last line of what an application's replicas raised when they were made, as far as Serve knows it."""
    with contextlib.suppress(RayError, RayServeException, KeyError):
        for deployment in serve.status().applications[name].deployments.values():
            lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", deployment.message).splitlines()]
            if told := [line for line in lines if re.match(r"[\w.]+(Error|Exception)\b", line)]:
                return told[-1][:300]
    return ""


def stop(deadline: float = START) -> None:
    """Finishes what was accepted, for up to `deadline` seconds, then ends Serve. The API goes before the engines, and
    both before the proxies that hold the clients' connections."""
    until = time.monotonic() + deadline
    for names in ({NAME}, {app_name(key) for key in running()}):
        for name in names & set(serve.status().applications):
            serve.delete(name, _blocking=False)
        while names & set(serve.status().applications) and time.monotonic() < until:
            time.sleep(0.05)
    serve.shutdown()
