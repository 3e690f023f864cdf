"""Makes the best candidate the champion: `python -m pipelines.promote` -> promoted.json and an MLflow model version.

A candidate is one sampler with one solver setting. The policy is the `promote` block of params.yaml: among candidates
that pass its guards the one with the lowest metric wins. `--show` prints the reigning champion instead.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from components import run_folder
from components.errors import InputError
from components.files import sha256_folder, write_json
from infra import tracking
from pipelines import cli, paths
from pipelines.measurements import read_metrics
from pipelines.params import Params, PromoteConfig, load
from pipelines.train import ROOT

Candidate = dict[str, Any]  # one entry of a metrics file's `candidates`, with its `sampler` and `number` added


def read_candidates(params: Params) -> list[Candidate]:
    """Every measured candidate of every sampler in params.yaml. Raises InputError if one was not measured, or was
    under another protocol."""
    return [
        {**figures, "sampler": sampler, "number": number}
        for sampler, metrics in read_metrics(params).items()
        for number, figures in enumerate(metrics["candidates"])
    ]


def objections(candidate: Candidate, policy: PromoteConfig) -> list[str]:
    """Why the guards refuse a candidate; empty if they do not."""
    reasons = []
    slowest = policy.max_ms_per_image
    if slowest is not None and candidate["ms_per_image"] > slowest:
        reasons.append(f"{candidate['ms_per_image']:.1f} ms per image is over max_ms_per_image {slowest:g}")
    least = policy.min_label_agreement
    if least is not None and candidate["label_agreement"] is None:
        reasons.append("takes no class, so it cannot meet min_label_agreement")
    elif least is not None and candidate["label_agreement"] < least:
        reasons.append(f"label agreement {candidate['label_agreement']:.3f} is under min_label_agreement {least:g}")
    return reasons


def choose(candidates: list[Candidate], policy: PromoteConfig) -> Candidate:
    """The winner. Raises InputError telling each candidate's objections if none passes."""
    passing = [candidate for candidate in candidates if not objections(candidate, policy)]
    if not passing:
        told = "; ".join(f"{label(c)}: {', '.join(objections(c, policy))}" for c in candidates)
        raise InputError(f"promote: no candidate passes the guards of params.yaml ({told})")
    return min(passing, key=lambda candidate: candidate[policy.metric])


def label(candidate: Candidate) -> str:
    """A candidate's name for people: `ldm #0`."""
    return f"{candidate['sampler']} #{candidate['number']}"


def promote(params: Params, winner: Candidate) -> tuple[dict[str, Any], bool]:
    """Registers the winner and describes it; the second value tells whether the registered version is new."""
    folder = paths.RUNS / winner["sampler"]
    run = run_folder.load(folder)  # refuses a folder that could not be served
    content = hashlib.sha256(
        json.dumps([sha256_folder(folder), winner["settings"]], sort_keys=True).encode()
    ).hexdigest()
    figures = {name: value for name, value in winner.items() if name not in ("sampler", "number", "settings")}
    tags = {
        "sampler": winner["sampler"],
        "settings": json.dumps(winner["settings"], sort_keys=True),
        params.promote.metric: f"{winner[params.promote.metric]:.6g}",
    }
    job = run.config.provenance.job
    model = params.promote.registered_model
    version, is_new = tracking.register_champion(params.tracking, ROOT, model, folder, content, job, tags)
    promoted = {
        "sampler": winner["sampler"],
        "key": f"samplers.{winner['sampler']}",
        "candidate": winner["number"],
        "settings": winner["settings"],
        "figures": figures,
        "run_folder": folder.as_posix(),
        "model": model,
        "version": version,
        "hash": content,
    }
    return promoted, is_new


def describe(promoted: dict[str, Any], report: Path) -> str:
    """The champion and its figures, for a terminal."""
    settings = ", ".join(f"{name} {value}" for name, value in promoted["settings"].items()) or "no settings"
    lines = [f"champion: {promoted['sampler']} ({settings}), registered as {promoted['model']} v{promoted['version']}"]
    for name, value in promoted["figures"].items():
        shown = f"{value:.4g}" if isinstance(value, float) else value
        lines.append(f"  {name:<20} {shown}")
    lines.append(f"report:   {report.resolve()}" if report.is_file() else "report:   not written yet")
    return "\n".join(lines)


def show() -> None:
    if not paths.PROMOTED.is_file():
        raise InputError(f"{paths.PROMOTED}: missing; expected what `dvc repro` writes")
    print(describe(json.loads(paths.PROMOTED.read_text()), paths.REPORT))


def main(argv: list[str]) -> None:
    if argv == ["--show"]:
        show()
        return
    cli.no_arguments(argv, "python -m pipelines.promote [--show]")
    params = load()
    candidates = read_candidates(params)
    for candidate in candidates:
        for reason in objections(candidate, params.promote):
            print(f"{label(candidate)} is out: {reason}")
    promoted, is_new = promote(params, choose(candidates, params.promote))
    write_json(paths.PROMOTED, promoted)
    print(f"{'registered' if is_new else 'already registered as'} {promoted['model']} v{promoted['version']}")


if __name__ == "__main__":
    cli.run(main)
