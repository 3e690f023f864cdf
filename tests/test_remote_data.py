"""DVC's remote in a bucket, and a revision run elsewhere: what infra/docker/repro.sh does in a RayJob."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.clones import ROOT, command, environment, make_clone, tiny_params

SCRIPTS = ROOT / "infra/docker"


@pytest.fixture
def project(s3, tmp_path) -> Path:
    """A project with a remote, as docs/OPERATIONS.md sets it up, and an origin."""
    clone = make_clone(tmp_path / "project", tiny_params())
    done = command(clone, "dvc", "remote", "add", "--default", "storage", "s3://bucket/dvc")
    assert done.returncode == 0, done.stderr
    git(clone, "add", "--all")
    git(clone, "commit", "--quiet", "--message", "a remote")
    git(tmp_path, "clone", "--quiet", "--bare", str(clone), "origin.git")
    return clone


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    done = subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_revision_is_run_elsewhere_and_comes_back_whole(s3, project, tmp_path):
    """clone, pull, repro, push, commit; then a fresh clone of the commit has the data and nothing to do."""
    variables = {"REPOSITORY": str(tmp_path / "origin.git"), "REVISION": git(project, "rev-parse", "HEAD")}
    there = tmp_path / "there"
    done = subprocess.run(
        ["bash", SCRIPTS / "repro.sh", there, "prepare"],
        env=environment(there) | variables | {"RESULT_BRANCH": "result", "PYTHONPATH": str(there)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert any(item["Key"].startswith("dvc/") for item in s3.list_objects_v2(Bucket="bucket")["Contents"])

    fresh = tmp_path / "fresh"
    git(tmp_path, "clone", "--quiet", "--branch", "result", str(tmp_path / "origin.git"), str(fresh))
    assert git(fresh, "show", "--stat", "--format=%s").startswith("dvc repro of ")
    assert (fresh / "dvc.lock").is_file() and not (fresh / "data/images/train").exists()
    pulled = command(fresh, "dvc", "pull", "--allow-missing", "--with-deps", "prepare")
    assert pulled.returncode == 0, pulled.stderr
    shards = sorted(path.name for path in (fresh / "data/images/train").iterdir())
    assert "manifest.json" in shards
    again = command(fresh, "dvc", "repro", "prepare")
    assert "Data and pipelines are up to date" in again.stdout, again.stdout + again.stderr
    assert git(fresh, "status", "--porcelain") == ""


def test_a_missing_revision_is_told(tmp_path, project):
    done = subprocess.run(
        ["bash", SCRIPTS / "checkout.sh", tmp_path / "there"],
        env=os.environ | {"REPOSITORY": str(tmp_path / "origin.git"), "REVISION": "no-such-branch"},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "no-such-branch" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_volume_that_belongs_to_another_user_is_checked_out_into(tmp_path):
    """As Kubernetes mounts one: its root is not the container's user's."""
    origin, there = tmp_path / "origin", tmp_path / "there"
    for folder in (origin, there):
        folder.mkdir()
    (origin / "params.yaml").write_text("seed: 0\n")
    git(origin, "init", "--quiet")
    git(origin, "add", "--all")
    git(origin, "commit", "--quiet", "--message", "first")
    os.chown(there, 12345, 12345)
    done = subprocess.run(
        ["bash", SCRIPTS / "checkout.sh", there],
        env=os.environ | {"REPOSITORY": str(origin), "REVISION": git(origin, "rev-parse", "HEAD")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (there / "params.yaml").read_text() == "seed: 0\n"
