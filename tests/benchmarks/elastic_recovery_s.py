"""From the loss of a node to the next step of an elastic run, on two Ray nodes of one machine.

The figure is the slowest of: a node that is killed, and a node that is taken away after a notice. `noticed_steps_lost`
counts the steps that were done again after the notice, of which there should be none.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.benchmarks.common import emit
from tests.test_elastic import after, repeated, run_elastic


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        told = run_elastic(Path(temporary), "--preempt")
    done, steps = told["done"], told["steps"]
    killed, preempted = after(steps, done["killed"], 1), after(steps, done["preempted"], 1)
    emit(
        "elastic_recovery_s",
        round(max(killed, preempted), 1),
        "s from a node's loss to the next step",
        "under 30",
        killed=round(killed, 1),
        preempted=round(preempted, 1),
        grown_after_return=round(after(steps, done["back"], 2), 1),
        noticed_steps_lost=repeated(steps, done["noticed"], done["added"]),
    )


if __name__ == "__main__":
    main()
