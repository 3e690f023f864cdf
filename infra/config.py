"""The blocks of params.yaml that say where to compute. None of them changes what is computed.

They stand apart from the modules they configure so that reading params.yaml imports neither Ray nor MLflow.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from components.config import Strict

Workers = Annotated[int, Field(ge=1)]
LOOPBACK = ("127.0.0.1", "localhost", "::1")
SQLITE = "sqlite:///"
_DVC_COPIES = (".dvc", "tmp", "exps")  # DVC 3.67: where `dvc exp run --temp` and queues copy a project to, to run there


def home(root: Path) -> Path:
    """The project that keeps records and checkpoints of what runs in `root`: `root` itself, or of a copy that DVC made
    for one experiment, and takes away after it, the project that was copied."""
    places = [place for place in range(len(root.parts)) if root.parts[place : place + 3] == _DVC_COPIES]
    return Path(*root.parts[: places[-1]]) if places else root


class ClusterConfig(Strict):
    """`address`: `local` starts Ray on this machine, anything else joins that cluster. `num_workers` is a number, or
    `[min, max]` for a group that shrinks and grows with the cluster. `threads_per_worker` 0 shares a machine's cores
    among its workers. `use_gpu`: whether each worker takes one; unsaid, where the cluster has some at the start, which
    a cluster that starts its GPU nodes on demand has not. `sharding: fsdp2` spreads weights over the workers, for
    networks that do not fit on one."""

    address: str = "local"
    num_workers: Workers | tuple[Workers, Workers] = 1
    threads_per_worker: int = Field(0, ge=0)
    use_gpu: bool | None = None
    sharding: Literal["none", "fsdp2"] = "none"
    resize_every: float = Field(60, gt=0)  # seconds between two looks for nodes that an elastic group may grow onto
    storage_path: str = ".cache/ray"  # checkpoints; a folder that every node sees, or s3://bucket/prefix
    cache_gib: float = Field(100, gt=0)  # of a node's disk, for inputs that it fetches from a bucket
    max_failures: int = Field(3, ge=0)  # worker failures that a run survives

    @model_validator(mode="after")
    def _fits(self) -> ClusterConfig:
        if self.elastic and self.num_workers[0] > self.num_workers[1]:
            raise ValueError(f"num_workers {list(self.num_workers)}: expected [min, max] with min <= max")
        if self.elastic and not self.max_failures:
            raise ValueError("num_workers [min, max] needs max_failures above 0: losing a node is a failure")
        return self

    @property
    def elastic(self) -> bool:
        return isinstance(self.num_workers, tuple)

    @property
    def cache_bytes(self) -> int:
        return int(self.cache_gib * 2**30)

    def storage(self, root: Path) -> str:
        """The storage path, a relative one below the home of `root`."""
        return self.storage_path if self.storage_path.startswith("s3://") else str(home(root) / self.storage_path)

    @property
    def max_workers(self) -> int:
        return self.num_workers[1] if self.elastic else self.num_workers


class TrackingConfig(Strict):
    """MLflow. A relative `artifacts` folder lies below the project's root; a server keeps its own and ignores it."""

    uri: str = Field("sqlite:///mlflow.db", min_length=1)
    experiment: str = Field("latent-foundry", min_length=1)
    artifacts: str = "mlartifacts"

    def absolute_uri(self, root: Path) -> str:
        """The URI with a relative SQLite path anchored at the home of `root`, because workers run in folders of their
        own."""
        if self.uri.startswith(SQLITE) and not self.uri.startswith(SQLITE + "/"):
            return f"{SQLITE}{home(root) / self.uri.removeprefix(SQLITE)}"
        return self.uri

    def database(self, root: Path) -> Path | None:
        """The file of a SQLite store; None of any other store."""
        uri = self.absolute_uri(root)
        return Path(uri.removeprefix(SQLITE)) if uri.startswith(SQLITE) else None

    def is_there(self, root: Path) -> bool:
        """Whether there is a store at all; to open a SQLite one would make it. An empty file, as a crash leaves it, is
        none."""
        database = self.database(root)
        return database is None or (database.is_file() and database.stat().st_size > 0)

    def artifact_folder(self, root: Path) -> Path:
        return home(root) / self.artifacts


class ServeConfig(Strict):
    """The endpoint. Beyond loopback it asks for API keys: `api_keys` is a file with one SHA-256 digest a line, `#`
    starts a comment. `threads` 0 shares this machine's cores; with a GPU they hardly matter. `replicas` is a number of
    engines a version, or `[min, max]` to follow their load."""

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1, le=65535)
    api_keys: str = ""
    allowed_hosts: tuple[str, ...] = ()  # that requests may be addressed to; none: loopback's names, or any beyond it
    cors_origins: tuple[str, ...] = ()  # pages of other origins that may call the API
    api_replicas: int | None = Field(None, ge=1)  # of the API before the engines; unset: two on a cluster, else one
    aliases: dict[str, str] = {}  # other names that clients give to a model, as {dall-e-2: latent-foundry}
    # a size that is not the model's own: refused, answered in its own size, or resized to
    sizes: Literal["exact", "nearest", "resize"] = "exact"

    # what is served
    watch_every: float = Field(5, ge=0)  # seconds between two looks for another champion; 0: never
    versions: tuple[str, ...] = ()  # registered versions that are served beside the champion
    keep_former: float = Field(300, ge=0)  # seconds for which a former champion can still be asked for by its version
    cache: str = ".cache/served"  # copies of served versions; a folder that every node sees
    replicas: Workers | tuple[Workers, Workers] = 1
    use_gpu: bool | None = None  # as cluster.use_gpu
    gpu_share: float = Field(0.5, gt=0, le=1)  # of each engine, where there are GPUs: 0.5 leaves room for a successor

    # films
    videos: str = ".cache/videos"  # their jobs; a folder that every API replica sees
    videos_kept: int = Field(200, ge=1)  # jobs, those that wait among them
    video_hours: float = Field(24, gt=0)  # for which a film can be fetched
    videos_at_once: int = Field(1, ge=1)  # that one API replica has made at a time; images go between

    # limits of one request
    max_images: int = Field(10, ge=1)
    max_steps: int = Field(250, ge=1)
    max_prompt_length: int = Field(1000, ge=1)  # characters
    max_body: int = Field(4_000_000, ge=1)  # bytes
    body_timeout: float = Field(30, gt=0)  # seconds in which a body must have come
    max_pixels: int = Field(16_000_000, ge=1)  # of an image that a client sends
    deadline: float = Field(60, gt=0)  # seconds from the request to its last image

    # limits of all requests that one API replica has at a time
    open_bodies: int = Field(512, ge=1)  # requests whose bodies are still coming
    pixels_in_flight: int = Field(320_000_000, ge=1)  # of clients' images that wait to be decoded, one at a time
    images_per_key: int = Field(0, ge=0)  # that one API key may wait for at a time; 0: any number

    # the engine of each replica
    max_rows: int = Field(64, ge=1)  # of one forward
    slots: int = Field(64, ge=1)  # rows of images that advance at the same time; others wait, first come, first served
    queue: int = Field(256, ge=0)  # rows of images that may wait for a slot
    cache_bytes: int | None = Field(None, gt=0)  # of what one net keeps between calls; room for `slots` rows if unset
    # sizes that the rows of a forward are padded up to; if unset, powers of two for CUDA graphs, else none
    buckets: tuple[Annotated[int, Field(ge=1)], ...] | None = None
    cuda_graphs: bool = True  # forwards on a GPU are recorded once a size and replayed
    threads: int = Field(0, ge=0)
    stuck_after: float = Field(30, gt=0)  # seconds without a forward's end, after which a replica is replaced

    @model_validator(mode="after")
    def _fits(self) -> ServeConfig:
        if isinstance(self.replicas, tuple) and self.replicas[0] > self.replicas[1]:
            raise ValueError(f"replicas {list(self.replicas)}: expected [min, max] with min <= max")
        return self

    @property
    def loopback(self) -> bool:
        return self.host in LOOPBACK
