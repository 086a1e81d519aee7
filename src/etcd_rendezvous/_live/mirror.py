# SPDX-License-Identifier: BSD-3-Clause
"""
What is known of some keys, from reads and from a watch, in whatever order they come.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from .._v3.wire import Entry, Event

__all__ = ["Mirror"]


class Mirror:
    """
    The keys that begin with a prefix, as far as they are known.

    Old news change nothing: what is known of a key only ever moves to a later
    revision. Not safe for threads.

    Args:
        prefix: What the keys begin with.
    """

    def __init__(self, prefix: bytes) -> None:
        self.prefix = prefix
        #: The revision of the latest read; 0 before the first.
        self.read = 0
        #: The latest revision that is known of: a read that is sent now can't be older,
        #: unless etcd has lost data.
        self.latest = 0
        self._entries: dict[bytes, Entry] = {}
        # Of keys whose latest news is later than the latest read; those of deleted
        # ones too.
        self._known: dict[bytes, int] = {}

    def get(self, key: bytes) -> Entry | None:
        """
        Return a key's entry, or None if there is none, as far as is known.
        """
        return self._entries.get(key)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    def tell(self, events: Iterable[Event]) -> bool:
        """
        Take in changes that a watch has told.

        Returns:
            Whether any of them was news.
        """
        news = False
        for event in events:
            entry = event.entry
            if entry.mod_revision <= self._known.get(entry.key, self.read):
                continue
            news = True
            self._known[entry.key] = entry.mod_revision
            self.latest = max(self.latest, entry.mod_revision)
            if event.deleted:
                self._entries.pop(entry.key, None)
            else:
                self._entries[entry.key] = entry
        return news

    def load(self, entries: Iterable[Entry], revision: int) -> bool:
        """
        Take in what a read of all the keys has found.

        Args:
            entries: What it has found.
            revision: The revision that it was made at.

        Returns:
            Whether it told anything that was not known.
        """
        if revision <= self.read:
            return False
        later = {key: known for key, known in self._known.items() if known > revision}
        found = {entry.key: entry for entry in entries}
        for key in later:
            found.pop(key, None)
            if key in self._entries:
                found[key] = self._entries[key]
        news = found != self._entries
        self._entries = found
        self._known = later
        self.read = revision
        self.latest = max(self.latest, revision)
        return news

    def forget(self) -> None:
        """
        Forget everything: the keys are those of another etcd now.
        """
        self.read = self.latest = 0
        self._entries.clear()
        self._known.clear()
