"""What workers of this machine put into the driver's mailbox."""

import pickle
from pathlib import Path
from queue import Empty
from threading import Thread

import pytest

from infra.ray_train.mailbox import Mailbox
from infra.ray_train.progress import Reports


def put_from_a_worker(pickled: bytes, name: str) -> None:
    sender = pickle.loads(pickled)
    for number in range(3):
        sender.put(("figures", number, {"name": name}))
    sender.put(("picture", name, bytes(2**20)))


def test_items_of_several_workers_arrive_in_each_ones_order():
    mailbox = Mailbox()
    with pytest.raises(Empty):
        mailbox.get(0)
    workers = [Thread(target=put_from_a_worker, args=(pickle.dumps(mailbox.sender), name)) for name in ("a", "b")]
    for one in workers:
        one.start()
    items = [mailbox.get(60) for _ in range(8)]
    for name in ("a", "b"):
        assert [item[1] for item in items if item[-1] == {"name": name}] == [0, 1, 2]
    assert [len(item[2]) for item in items if item[0] == "picture"] == [2**20] * 2
    for one in workers:
        one.join()
    with pytest.raises(Empty):  # senders that have ended are no error
        mailbox.get(0)
    folder = Path(mailbox.sender._address).parent
    assert folder.stat().st_mode & 0o777 == 0o700
    mailbox.close()
    assert not folder.exists()


def test_what_was_put_before_the_end_is_told():
    told = []

    class Listener:
        def figures(self, step, figures):
            told.append(step)

    with Reports([Listener()], here=True) as reports:
        for step in range(100):
            reports.queue.put(("figures", step, {}))
    assert told == list(range(100))
