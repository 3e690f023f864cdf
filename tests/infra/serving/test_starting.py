"""What is decided before Serve starts, without one."""

from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray import serve

from components.errors import InputError, SamplerError
from infra.config import ServeConfig
from infra.serving import ray_serve
from infra.serving.model_store import ModelStore
from tests.infra.local import served_model
from tests.infra.serving_helpers import write_promoted


def test_a_folder_that_cannot_be_loaded_is_refused_on_the_driver(tmp_path):
    write_promoted(tmp_path, "runs/ldm", "1")
    with pytest.raises(SamplerError, match="config.json: missing"):
        ray_serve.start(ModelStore(root=str(tmp_path)), ServeConfig())


def test_a_machine_too_loaded_for_serve_is_one_line(folder, monkeypatch):
    def start(**options):
        raise ray.exceptions.GetTimeoutError("the proxy is not up")

    monkeypatch.setattr(serve, "start", start)
    monkeypatch.setattr(ray_serve.Champions, "first", lambda self: (served_model(folder),))
    with pytest.raises(InputError, match="^serve: Ray Serve did not start in time"):
        ray_serve.start(ModelStore(root=""), ServeConfig())


def test_replicas_take_the_environments_word_on_how_threads_wait(monkeypatch):
    """Else they spin, which is the fastest on a machine of one's own, and sleep where engines may share one."""

    def told(**config: Any) -> dict[str, str]:
        app = ray_serve.version_app(None, ServeConfig(**config))
        return app._bound_deployment.ray_actor_options["runtime_env"]["env_vars"]

    monkeypatch.setattr(ray_serve.ray_session, "has_gpu", lambda wanted: False)
    for name in ray_serve.WAITING:
        monkeypatch.delenv(name, raising=False)
    assert told() == {}
    assert told(versions=("3",)) == told(replicas=2) == told(replicas=(1, 4)) == {"OMP_WAIT_POLICY": "passive"}
    monkeypatch.setenv("GOMP_SPINCOUNT", "1000")
    assert told() == told(versions=("3",)) == {"GOMP_SPINCOUNT": "1000"}


@pytest.mark.parametrize("versions", [(), ("2",)])
def test_versions_beside_the_champion_come_up_where_nothing_is_looked_up_again(versions, monkeypatch):
    """`watch_every: 0`: the champion is there at once, what the registry alone knows after it."""
    frontend = object.__new__(ray_serve.Frontend)
    looks = []

    class Champions:
        model_store = ModelStore(root="", versions=versions)

        def look(self):
            return ("champion", *versions)

    def step(wanted):
        looks.append(wanted)
        frontend._served = wanted

    frontend.champions, frontend.config = Champions(), ServeConfig(watch_every=0)
    frontend.rollout, frontend._served = SimpleNamespace(step=step), ()
    monkeypatch.setattr(ray_serve.Frontend, "_first", lambda self: ("champion",))
    monkeypatch.setattr(ray_serve.time, "sleep", lambda seconds: None)
    frontend._watch()
    assert looks == [("champion",), *([("champion", "2")] if versions else [])]
