"""Media and families that only tests know, each a file found like those of components: `installed` adds their folders.

media/series.py, media/clip.py   rows of (1, L) and of (C, T, H, W)
families/toy_*.py                an autoencoder, a judge, a generator and diffusion, for rows of any rank
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from components import families
from components.data import media

HERE = Path(__file__).parent


@contextlib.contextmanager
def installed() -> Iterator[None]:
    """The toys are found by their names within."""
    with pytest.MonkeyPatch.context() as patch:
        for package in (media, families):
            own = str(HERE / package.__name__.rpartition(".")[2])
            patch.setattr(package, "__path__", [*package.__path__, own])
        _forget()
        try:
            yield
        finally:
            patch.undo()
            _forget()


def _forget() -> None:
    media.medium.cache_clear()
    families.family_names.cache_clear()
