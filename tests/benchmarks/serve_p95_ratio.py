"""The 95th percentile of a request's latency against that on `@serve.batch`, 16 clients, on the same weights.

python -m tests.benchmarks.serve_p95_ratio
"""

from __future__ import annotations

from tests.benchmarks.common import emit
from tests.benchmarks.serve_vs_per_request import AIM, closed_runs
from tests.benchmarks.serving_peers import Batched, served


def main() -> None:
    with served(peer=Batched) as (addresses, sampler):
        told = {side: run.told() for side, run in closed_runs(addresses, (AIM,))[AIM].items()}
    ratio = told["ours"]["p95_ms"] / told["peer"]["p95_ms"]
    emit("serve_p95_ratio", round(ratio, 2), "p95 of ours / of the peer", "< 0.5", closed=told, sampler=sampler)


if __name__ == "__main__":
    main()
