"""One thread that always works on the newest image of every camera. Needs no ROS."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Mailbox(Generic[T]):
    """A slot per sender; a new item replaces the one that nobody has taken yet, so nothing ever queues up."""

    def __init__(self) -> None:
        self._slots: dict[str, T] = {}
        self._changed = threading.Condition()
        self._closed = False

    def put(self, sender: str, item: T) -> bool:
        """Leave an item. Returns whether an older one of this sender had to go."""
        with self._changed:
            replaced = sender in self._slots
            self._slots[sender] = item
            self._changed.notify()
        return replaced

    def take(self) -> list[T]:
        """Wait for items and take one of each sender that has left any; [] once the box is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._slots or self._closed)
            items = [] if self._closed else list(self._slots.values())
            self._slots.clear()
            return items

    def close(self) -> None:
        """Let go whoever waits."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class Worker(Generic[T]):
    """Calls `work` with what the mailbox holds, in a thread of its own, until stopped.

    work: must not raise what `failed` does not want to hear of; an exception never ends the thread.
    """

    def __init__(self, work: Callable[[list[T]], None], failed: Callable[[Exception], None]):
        self.mailbox: Mailbox[T] = Mailbox()
        self._work, self._failed = work, failed
        self._thread = threading.Thread(target=self._run, name="deformer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End after the work in progress."""
        self.mailbox.close()
        self._thread.join()

    def _run(self) -> None:
        while items := self.mailbox.take():
            try:
                self._work(items)
            except Exception as error:
                self._failed(error)
