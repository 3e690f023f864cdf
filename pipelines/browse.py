"""MLflow's pages of the runs and the registry, until interrupted: `python -m pipelines.browse` (`make mlflow`)."""

from __future__ import annotations

import argparse
import os
import sys

from infra.serving import ports
from infra.tracking import runs
from pipelines.support import cli
from pipelines.support.params import load
from pipelines.support.paths import ROOT

HOST = "127.0.0.1"
# one worker: it is one person who looks; no queue of jobs for what this project has none of, evaluations of agents
COMMAND = ("-m", "mlflow", "server", "--host", HOST, "--workers", "1")
ENVIRONMENT = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser("python -m pipelines.browse")
    parser.add_argument("--port", type=int, default=5000)
    port = parser.parse_args(argv).port
    tracking = load().tracking
    uri = tracking.absolute_uri(ROOT)
    if uri.startswith("http"):
        print(f"the runs are at {uri}")
        return
    with ports.claimed(HOST, port, "--port"), runs.reachable(uri):
        runs.open_store(tracking, ROOT)  # a moved project's pictures are found again
    print(f"the runs: http://{HOST}:{port}", flush=True)
    command = [sys.executable, *COMMAND, "--port", str(port), "--backend-store-uri", uri]
    os.execve(sys.executable, command, os.environ | ENVIRONMENT)


if __name__ == "__main__":
    cli.run(main)
