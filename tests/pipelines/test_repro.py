"""One Ray for all stages of a `dvc repro`: when it is started, and that the stages join it."""

import contextlib
import os
import re
import subprocess
import sys
import time

import psutil
import pytest
import ray

from components.errors import InputError
from infra.config import ClusterConfig
from infra.ray_cluster import ray_session
from pipelines import repro
from pipelines.support import params, readiness


@pytest.fixture()
def calls(monkeypatch):
    """The commands that were run, each with the address that its stages would join; `dvc status` says `changed`."""
    made = []

    def call(command, env=None, preexec_fn=None):
        made.append((" ".join(command[2:]), (env or {}).get(ray_session.SHARED)))
        return 1 if "status" in command else 0

    @contextlib.contextmanager
    def session(cluster, root):
        yield "127.0.0.1:6379"

    monkeypatch.setattr(subprocess, "call", call)
    monkeypatch.setattr(ray_session, "session", session)
    monkeypatch.setattr(repro, "alone", lambda root: contextlib.nullcontext())  # tests run beside each other
    monkeypatch.setattr(params, "load", lambda: type("Params", (), {"cluster": ClusterConfig()}))
    monkeypatch.setattr(readiness, "refuse_unready", lambda asked: None)
    return made


def test_what_changed_is_run_on_one_ray(calls):
    with pytest.raises(SystemExit) as ended:
        repro.main([])
    assert ended.value.code == 0
    assert calls == [("dvc status --quiet", None), ("dvc repro", "127.0.0.1:6379")]


def test_nothing_to_do_starts_no_ray(calls, monkeypatch, capsys):
    monkeypatch.setattr(subprocess, "call", lambda command, env=None: (calls.append((command[3], env)), 0)[1])
    repro.main([])
    assert calls == [("status", None)]
    assert "up to date" in capsys.readouterr().out


def test_nothing_to_do_imports_neither_torch_nor_ray():
    code = (
        "import subprocess, sys; subprocess.call = lambda *given, **named: 0; from pipelines import repro; "
        "repro.main([]); print(sorted({'torch', 'ray', 'mlflow'} & set(sys.modules)))"
    )
    told = subprocess.run([sys.executable, "-c", code], cwd=repro.ROOT, capture_output=True, text=True, check=True)
    assert told.stdout.splitlines()[-1] == "[]"


def test_a_second_one_in_a_project_is_refused_at_once(tmp_path):
    with repro.alone(tmp_path):
        held = f"{tmp_path}: pipelines.repro, process {os.getpid()}, is at work here"
        with pytest.raises(InputError, match=re.escape(held)), repro.alone(tmp_path):
            pass
    with repro.alone(tmp_path):
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is of Linux")
def test_dvc_ends_with_the_one_that_started_it(tmp_path, monkeypatch):
    dvc = tmp_path / "dvc.py"
    dvc.write_text("import os, sys, time; open(sys.argv[2], 'w').write(str(os.getpid())); time.sleep(60)")
    told = tmp_path / "pid"
    code = (
        f"import sys; from pipelines import repro; repro.DVC = (sys.executable, {str(dvc)!r}); "
        f"repro.repro([{str(told)!r}], {{}})"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=repro.ROOT)
    until = time.monotonic() + 60
    while not (told.exists() and told.read_text()) and time.monotonic() < until:
        time.sleep(0.05)
    child = psutil.Process(int(told.read_text()))
    parent.kill()
    parent.wait()
    child.wait(10)


def test_arguments_go_to_dvc_and_a_cluster_is_not_replaced(calls, monkeypatch):
    with pytest.raises(SystemExit):
        repro.main(["autoencoder@vae"])
    assert calls.pop() == ("dvc repro autoencoder@vae", "127.0.0.1:6379")
    monkeypatch.setattr(params, "load", lambda: type("Params", (), {"cluster": ClusterConfig(address="auto")}))
    with pytest.raises(SystemExit):
        repro.main(["autoencoder@vae"])
    assert calls.pop() == ("dvc repro autoencoder@vae", None)


@pytest.mark.parametrize("address, joined", [("local", "127.0.0.1:6379"), ("head:10001", "head:10001")])
def test_a_stage_joins_the_ray_that_it_is_given(monkeypatch, address, joined):
    monkeypatch.setenv(ray_session.SHARED, "127.0.0.1:6379")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    asked = {}

    def init(**settings):
        asked.update(settings)
        raise ConnectionError("nobody there")

    monkeypatch.setattr(ray, "init", init)
    with (
        pytest.raises(Exception, match=f"no Ray cluster answers at '{joined}'"),
        ray_session.session(ClusterConfig(address=address), repro.ROOT),
    ):
        pass
    assert asked["address"] == joined
    assert "num_cpus" not in asked
