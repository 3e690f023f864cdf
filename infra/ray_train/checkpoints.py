"""A training's state as a folder that is whole or refused."""

from __future__ import annotations

import contextlib
import logging
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import ray.train
import torch

from components.errors import DataError, StorageError
from components.files import sha256
from components.training.loop import State
from infra.storage.store import Store

STATE_FILE, STATE_HASH = "state.pt", "state.sha256"
logger = logging.getLogger(__name__)


@contextlib.contextmanager
def written_checkpoint(state: State) -> Iterator[ray.train.Checkpoint]:
    """A state in a temporary folder, for Ray Train to store within the block: Ray itself would leave one that cannot be
    stored."""
    name = ray.train.get_context().get_experiment_name()
    with tempfile.TemporaryDirectory(prefix=f"{name}-", ignore_cleanup_errors=True) as folder:
        write_state(Path(folder), state)
        yield ray.train.Checkpoint.from_directory(folder)


def restore(device: torch.device) -> State | None:
    """The newest checkpoint of a worker's run that is whole; None at the start of a run."""
    newest = ray.train.get_checkpoint()
    if newest is None:
        return None
    checkpoint = Store(newest.filesystem, newest.path)
    return newest_whole(checkpoint.parent, device, last=checkpoint.name)


def newest_whole(run: Store, device: torch.device | str, last: str | None = None) -> State | None:
    """The newest state in a run's storage that is whole, none newer than the folder `last`; None if there is none.
    Raises StorageError where that cannot be told."""
    names = [name for name in run.names() if re.match(r"checkpoint_\d", name)]  # not Ray's list of them, a file beside
    for name in reversed(names):  # Ray names them by time
        if last is not None and name > last:
            continue
        try:
            with (run / name).on_disk() as folder:
                return read_state(folder, device)
        except StorageError:  # which says nothing of the checkpoint: another try may read it
            raise
        except DataError as error:
            logger.warning("%s; going back to the checkpoint before", error)
    return None


def write_state(folder: Path, state: State) -> None:
    """Writes a checkpoint: the state, and the hash that tells whether it is whole."""
    torch.save(vars(state), folder / STATE_FILE)
    (folder / STATE_HASH).write_text(sha256(folder / STATE_FILE))


def read_state(folder: Path, device: torch.device | str) -> State:
    """A checkpoint's state; loading runs no code. Raises DataError if it is not whole."""
    path, recorded = folder / STATE_FILE, folder / STATE_HASH
    if not path.is_file() or not recorded.is_file() or sha256(path) != recorded.read_text():
        raise DataError(f"{path}: checkpoint is missing, truncated or altered")
    return State(**torch.load(path, map_location=device, weights_only=True))
