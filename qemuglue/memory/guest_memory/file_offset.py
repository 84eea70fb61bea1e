"""FileOffset: a file and where in it."""

from __future__ import annotations


class FileOffset:
    """Where in a file a region begins (``src/guest_memory.rs``). What a file is, ``mmap`` says;
    here it is any object, held as long as this is. ``start`` is in bytes."""

    __slots__ = ("_file", "_start")

    def __init__(self, file: object, start: int) -> None:
        self._file = file
        self._start = start

    @classmethod
    def from_arc(cls, file: object, start: int) -> FileOffset:
        """The same: everything is shared in Python."""
        return cls(file, start)

    def file(self) -> object:
        """The file."""
        return self._file

    def arc(self) -> object:
        """The file."""
        return self._file

    def start(self) -> int:
        """Bytes from the start of the file."""
        return self._start

    def __repr__(self) -> str:
        return f"FileOffset({self._file!r}, {self._start:#x})"
