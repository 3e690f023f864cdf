import os
import subprocess
import sys

import pytest

from components.threads import begun_in_passing, in_passing


def test_what_a_thread_returns_or_raises_comes_back():
    assert in_passing(lambda: 3) == begun_in_passing(lambda: 3).result(10) == 3
    with pytest.raises(ZeroDivisionError):
        in_passing(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        begun_in_passing(lambda: 1 / 0).result(10)


COUNTS = """
import os, time, torch
from components.sampling.engine import Engine
from components.threads import begun_in_passing, in_passing

torch.set_num_threads(4)
fill = lambda: torch.zeros(2**24).sum()


class Kept:
    row_bytes = 2**24

    def allocate(self, rows):
        return torch.zeros(rows, 2**22).add_(1)

    def __call__(self, *, cache, slot):
        return cache[slot]


def told():
    time.sleep(0.2)  # a team's threads leave after the thread that had them
    return len(os.listdir("/proc/self/task"))


before = told()
Engine({"net": Kept()}, slots=4)
with_an_engine = told()
in_passing(fill)
begun_in_passing(fill).result()
in_passed = told()
fill()
print(with_an_engine - before, in_passed - before, told() - before)
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are counted where Linux lists them")
def test_an_engine_that_keeps_rows_leaves_no_team_of_threads_behind():
    """But its own thread: more than cores have libgomp put all to sleep. The last count shows that a team is seen."""
    run = subprocess.run([sys.executable, "-c", COUNTS], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["1", "1", "4"]
