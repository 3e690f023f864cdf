import resource
import subprocess
import sys
from pathlib import Path

import pytest

from components import memory

# blocks as a WaveNet's activations of 128 clips are, in a thread, as Ray Train has it; faults after the first few
FAULTS = """
import resource, sys, threading
import torch
from components import memory

if sys.argv[1] == "kept":
    memory.keep_freed()

def work():
    def once():
        torch.ones(25_000_000).add_(1)
    for _ in range(10):  # blocks find their places
        once()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        once()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


ROOT = str(Path(memory.__file__).parents[1])


def faults(how: str, **environment: str) -> int:
    asked = [sys.executable, "-c", FAULTS, how]
    environment["PYTHONPATH"] = ROOT
    return int(subprocess.run(asked, capture_output=True, text=True, check=True, env=environment).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_large_blocks_are_cleared_by_the_kernel_once():
    pages = 100_000_000 // resource.getpagesize()
    assert faults("as ever") > 4 * pages
    assert faults("kept") < pages / 10
    assert faults("as ever", **memory.environment()) < pages / 10
    assert faults("kept", MALLOC_MMAP_THRESHOLD_="131072") > 4 * pages  # who says otherwise is heard


def test_processes_that_are_started_are_told_unless_the_environment_says_otherwise(monkeypatch):
    for name in (*memory.ENVIRONMENT, "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    assert memory.environment() == memory.ENVIRONMENT
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    assert memory.environment() == {}
