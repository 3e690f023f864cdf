"""Training on a Ray cluster: the only package that knows Ray Train and accelerate.

A job is sent whole to every worker. A worker builds the family, continues from the newest checkpoint, and runs the one
loop of components.training. The driver shows and tracks what rank 0 reports.
"""

from components.imports import uncollected

with uncollected():  # a worker's process begins here
    from infra.ray_train.driver import best_checkpoint, run_lock, train
    from infra.ray_train.job import Input, Job

__all__ = ["Input", "Job", "best_checkpoint", "run_lock", "train"]
