"""Trajectories whose network waits for permission, so that a test decides what happens between two forwards."""

import threading

import torch

from components.sampling.trajectories import Call

TIMEOUT = 60  # seconds


class Gate:
    """A net that answers each call with its input, one forward at a time when told to."""

    def __init__(self):
        self.permits, self.entered, self.rows = threading.Semaphore(0), threading.Semaphore(0), []

    def __call__(self, x):
        self.rows.append(x.flatten().tolist())
        self.entered.release()
        assert self.permits.acquire(timeout=TIMEOUT)
        return x

    def open(self, count=1):
        for _ in range(count):
            self.permits.release()

    def wait(self):
        assert self.entered.acquire(timeout=TIMEOUT)


def walk(name, steps, rows=1):
    """A trajectory of `steps` calls whose rows carry `name`."""

    def start():
        x = torch.full((rows, 1), float(name))
        for _ in range(steps):
            x = yield Call("gate", {"x": x})
        return x

    return start
