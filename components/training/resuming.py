"""Whether a state that a training goes on from is one of its networks: what does not fit is told in one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from components.errors import TrainingError


@contextlib.contextmanager
def fits(step: int, what: str) -> Iterator[None]:
    """Raises TrainingError, in the place of what torch raises, of weights or optimizer states that do not fit."""
    try:
        yield
    except (RuntimeError, ValueError, KeyError) as error:
        raise _unfit(step, what, " ".join(str(error).split())[:200]) from None


def refuse_unfit_average(step: int, average: Mapping[str, Mapping[str, Tensor]], nets: Mapping[str, nn.Module]) -> None:
    """Raises TrainingError of averages that are not of these networks, tensor by tensor."""
    for name, net in nets.items():
        found, expected = average.get(name, {}), net.state_dict()
        for key in [*expected, *found]:
            shapes = [tuple(part[key].shape) if key in part else None for part in (found, expected)]
            if shapes[0] != shapes[1]:
                here, wanted = (f"of shape {shape}" if shape is not None else "none" for shape in shapes)
                raise _unfit(step, f"the average of {name}", f"{key}: found {here}, expected {wanted}")


def _unfit(step: int, what: str, why: str) -> TrainingError:
    return TrainingError(
        f"the checkpoint at step {step} does not fit {what} ({why}); expected one of the same networks: go on with the "
        "version that wrote it, or remove the run from cluster.storage_path to begin anew"
    )
