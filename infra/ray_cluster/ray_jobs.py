"""Jobs on a Ray cluster that this machine is no part of: submitted to the head's address, followed, taken up again.

What a job is for is not known here; that it may be tried again under the same id is.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from components import memory
from components.errors import InputError, TrainingError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

LOOK_EVERY = 1.0  # seconds
UNREACHABLE_FOR = 120.0  # seconds that a head may be away, while it restarts or a laptop sleeps
_OVER = ("SUCCEEDED", "FAILED", "STOPPED")


def connect(address: str) -> JobSubmissionClient:
    """A client of the head at http://head:8265. Raises InputError if none answers there."""
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"cluster.address: no Ray cluster answers at {address!r} ({reason})") from None


def run(
    client: JobSubmissionClient, name: str, command: str, working_dir: Path, environment: Mapping[str, str]
) -> None:
    """Runs a job to its end, telling its log. The same name again follows the job that runs already; one that ended
    without success is tried again. Raises TrainingError if it fails."""
    status = status_of(client, name)
    if status in _OVER:
        client.delete_job(name)
        status = None
    if status is None:
        client.submit_job(
            entrypoint=command,
            submission_id=name,
            runtime_env={"working_dir": str(working_dir), "env_vars": {**memory.environment(), **environment}},
        )
        print(f"{name}: submitted to {client.get_address()}", flush=True)
    else:
        print(f"{name}: runs already, {status.lower()}; following it", flush=True)
    try:
        status = follow(client, name)
    except KeyboardInterrupt as interrupted:
        # a question would wait for ever where nobody typed it
        if not interrupted.args and sys.stdin.isatty() and wants_to_stop(name):
            client.stop_job(name)
            print(f"{name}: stopped", flush=True)
        else:
            print(f"{name}: goes on; the same command follows it again", flush=True)
        raise
    if status != "SUCCEEDED":
        reason = (client.get_job_info(name).message or "no reason given").strip().splitlines()
        raise TrainingError(f"{name}: {status.lower()} on the cluster; its log is above ({reason[0]})")


def status_of(client: JobSubmissionClient, name: str) -> str | None:
    """None if the cluster knows no such job."""
    known = {job.submission_id: job.status for job in client.list_jobs()}
    return str(known[name].value) if name in known else None


def follow(client: JobSubmissionClient, name: str) -> str:
    """Prints a job's log as it grows, until the job is over; returns its last status."""
    shown, away_since = 0, None
    while True:
        try:
            status = str(client.get_job_status(name).value)  # before the log, so that its end is not missed
            log = client.get_job_logs(name)
            away_since = None
        except (ConnectionError, RuntimeError) as error:
            away_since = away_since or time.monotonic()
            if time.monotonic() - away_since > UNREACHABLE_FOR:
                told_error = str(error).splitlines()[0]
                raise InputError(f"{name}: its cluster does not answer any more ({told_error})") from None
            time.sleep(LOOK_EVERY)
            continue
        sys.stdout.write(log[shown:])
        sys.stdout.flush()
        shown = len(log)
        if status in _OVER:
            return status
        time.sleep(LOOK_EVERY)


def wants_to_stop(name: str) -> bool:
    """Asks once; a second interruption leaves the job alone."""
    try:
        return input(f"\nstop {name} on the cluster? [y/N] ").strip().lower() in ("y", "yes")
    except (KeyboardInterrupt, EOFError):
        return False
