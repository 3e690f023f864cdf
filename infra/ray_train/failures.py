"""What becomes of a training that fails: what would fail again ends it at once, anything else is tried again."""

from __future__ import annotations

from collections.abc import Iterator

import ray.train
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision

from components.errors import DataError, InputError, StorageError, TrainingError
from infra.storage.store import Store


class FailurePolicy(DefaultFailurePolicy):
    """Ray's, which tries again `max_failures` times, without the tries whose end is known: Ray 2.60 has no setting for
    them."""

    def make_decision(self, training_failed_error: ray.train.TrainingFailedError) -> FailureDecision:
        if any(map(_comes_again, _causes(training_failed_error))):
            return FailureDecision.RAISE
        return super().make_decision(training_failed_error)


def mendable(error: ray.train.TrainingFailedError, run: Store) -> Exception:
    """What a user can mend, in one line: storage that is gone or full, inputs that are not whole. Otherwise `error`."""
    causes = sorted(_causes(error), key=_comes_again, reverse=True)  # others fail along with the worker that has it
    for cause in causes:
        if isinstance(cause, InputError | TrainingError):
            return cause
        if isinstance(cause, OSError):
            reason = str(cause).splitlines()[0]
            return DataError(f"{run}: {reason}; what was stored stays, the same command goes on from it")
    return error


def _comes_again(cause: BaseException | None) -> bool:
    return isinstance(cause, InputError | TrainingError) and not isinstance(cause, StorageError)


def _causes(error: ray.train.TrainingFailedError) -> Iterator[BaseException | None]:
    """The workers' own exceptions, or the controller's."""
    failures = getattr(error, "worker_failures", {}).values() or [getattr(error, "controller_failure", None)]
    for failure in failures:
        yield getattr(failure, "_base_exc", failure)  # Ray 2.60: a worker's own exception in its wrapper
