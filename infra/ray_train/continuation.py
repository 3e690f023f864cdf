"""Going on from another run of the same job but for its length, where that comes to the same weights bit by bit."""

from __future__ import annotations

import json
from collections.abc import Mapping

from components.families import family_class
from components.training.loop import State
from infra.ray_train.checkpoints import newest_whole
from infra.ray_train.job import Job
from infra.storage.store import Store

RECORD = "job.json"  # in a run's storage: what tells whether another run may go on from it


def record(job: Job, run: Store) -> None:
    """Notes in a run's storage what it is but for its length."""
    facts = {"endless": job.endless_hash, "steps": job.training.steps, "save_every": job.training.save_every}
    run.write(RECORD, json.dumps(facts).encode())


def begin(job: Job, run: Store) -> tuple[Store, State] | None:
    """The run that a job without a state of its own goes on from, and that run's newest state, which may be the job's
    last already; None if it begins at step 0. Says which, and why not where a run is there that it cannot go on from
    exactly."""
    found, reasons = None, {}
    for other, facts in earlier(job, run):
        if (reason := why_not(job, facts)) is not None:
            reasons[other.name] = reason
            continue
        state = newest_whole(other, "cpu")
        if state is not None and state.step <= job.training.steps and (found is None or state.step > found[1].step):
            found = other, state
    if found is not None:
        print(
            f"{job.name}: goes on from step {found[1].step} of {found[0].name}, the same but for its length", flush=True
        )
    for name, reason in {} if found else reasons.items():
        print(f"{job.name}: begins at step 0, and does not go on from {name}, because {reason}", flush=True)
    return found


def earlier(job: Job, run: Store) -> list[tuple[Store, Mapping[str, object]]]:
    """The runs in the same storage that are the same job but for its length, with their records."""
    names = [name for name in run.parent.names() if name.startswith(f"{job.name}-") and name != run.name]
    others = [run.parent / name for name in names if not name.endswith(".lock")]
    records = [(other, json.loads(other.read(RECORD))) for other in others if RECORD in other.names()]
    return [(other, facts) for other, facts in records if facts["endless"] == job.endless_hash]


def why_not(job: Job, facts: Mapping[str, object]) -> str | None:
    """Why a training's steps depend on what its record and the job differ in; None if they do not."""
    if job.training.keep == "best" and facts != {**facts, "save_every": job.training.save_every}:
        return "training.keep best chooses among checkpoints at other steps"
    if facts["steps"] == job.training.steps:
        return None
    if job.training.keep == "best":
        return "training.keep best chooses among its last checkpoint, too"
    if job.training.ema_snapshots:
        return "averages are kept at shares of the run (training.ema_snapshots)"
    for phase in family_class(job.family)(job.config, job.info).phases:
        if phase.optimizer.schedule == "cosine":
            return f"the learning rate of {phase.name} falls to 0 at the run's end (schedule: cosine)"
    return None
