"""What the items of fw_cfg hold, as far as it is known.

Known are those that a throw-away QEMU was asked for (``Knowledge``); they are the same for every
QEMU of one command line. Three of them QEMU makes anew when the first of them is selected after
a reset (``acpi_build_update``), from the state that the PCI devices are in then: nothing of them
is known before they are read, and what was read holds until the next reset.
"""

from __future__ import annotations

from typing import Any

#: Items larger than this are not kept.
LARGEST = 1 << 21

#: An item of unknown length is taken to be longer than anything is read of it.
ENDLESS = 1 << 32


class Item:
    """One item: ``size`` bytes, each known or not."""

    __slots__ = ("_data", "_known", "size", "writable")

    def __init__(self, size: int, data: bytes | None = None, *, writable: bool = False) -> None:
        self.size = size
        self.writable = writable
        self._data = bytearray(b"" if data is None else data)
        self._known = bytearray(b"" if data is None else b"\1" * len(data))

    def learn(self, offset: int, data: bytes) -> None:
        """These bytes are in it."""
        stop = min(offset + len(data), self.size, LARGEST)
        data = data[: max(0, stop - offset)]
        if not data:
            return
        for part in (self._data, self._known):
            part.extend(bytes(max(0, stop - len(part))))
        self._data[offset:stop] = data
        self._known[offset:stop] = b"\1" * len(data)

    def forget(self, offset: int, size: int) -> None:
        """These bytes may be anything."""
        stop = min(offset + size, len(self._known))
        self._known[offset:stop] = bytes(max(0, stop - offset))

    def get(self, offset: int, size: int) -> bytes | None:
        """The bytes of a range; None unless all of them are known."""
        known = self._known[offset : offset + size]
        if len(known) < size or 0 in known:
            return None
        return bytes(self._data[offset : offset + size])


class Items:
    """The items of one running QEMU. ``known`` is what was learnt in a throw-away one: item key
    to (bytes or None, size, whether it may be written), where a key without an item is left
    out; under "changing" the keys of items that change whenever they are selected. Without the
    word "items" nothing was learnt at all."""

    def __init__(self, known: dict[str, Any]) -> None:
        self._learnt: dict[int, tuple[bytes | None, int, bool]] | None = known.get("items")
        self._changing: frozenset[int] = frozenset(known.get("changing", ()))
        self._items: dict[int, Item] = {}

    def get(self, key: int) -> Item | None:
        """The item; None where there is none."""
        item = self._items.get(key)
        if item is not None:
            return item
        if self._learnt is None:
            item = Item(ENDLESS)
        elif key not in self._learnt:
            return None
        else:
            data, size, writable = self._learnt[key]
            item = Item(size, data, writable=writable)
        self._items[key] = item
        return item

    def selected(self, key: int) -> None:
        """The item was selected, which may change it."""
        if key in self._changing:
            self._items.pop(key, None)

    def reset(self) -> None:
        """The machine was reset: what it makes anew is not known any more."""
        for key, item in list(self._items.items()):
            if item.writable:
                item.forget(0, item.size)
            else:
                del self._items[key]
