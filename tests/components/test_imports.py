import gc

import pytest

from components.imports import uncollected


def test_nothing_is_collected_within_and_the_collector_is_as_it_was_after():
    assert gc.isenabled()
    with pytest.raises(ImportError), uncollected():
        assert not gc.isenabled()
        raise ImportError
    assert gc.isenabled()
    gc.disable()
    try:
        with uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_where_all_is_imported_already_garbage_stays_collectable():
    count = gc.get_freeze_count()
    with uncollected():
        import json  # noqa: F401
    assert gc.get_freeze_count() == count
