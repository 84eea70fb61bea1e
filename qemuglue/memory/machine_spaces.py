"""ADDRESS_SPACE_MEMORY and ADDRESS_SPACE_IO: the spaces of the machine at hand, ready-made.

In QEMU ``address_space_memory`` and ``address_space_io`` are global variables, and its Rust
bindings have a static of the first name (seen in [RFC 24/26] rust/memory, qemu-devel 2025-08-07).
Here they stand for the spaces of the machine that was bound last::

    with mirror.bind():
        ADDRESS_SPACE_MEMORY.store(GuestAddress(0x1000), Le32(42))

Both have the Rust face; ``.space`` is the same space with the C face. Binding holds for the whole
process, all its threads.
"""

from __future__ import annotations

import threading
from types import TracebackType

from qemuglue.errors import ModelError
from qemuglue.memory import address_space as c_face
from qemuglue.memory.rust_binding import AddressSpace


class Binding:
    """What ``bind`` did; undone by ``restore`` or at the end of a ``with``.

    Bindings may be restored in any order: the spaces are always those of the newest one left.
    """

    __slots__ = ("io", "memory")

    def __init__(
        self, memory: c_face.AddressSpace, io: c_face.AddressSpace | None
    ) -> None:
        #: What ADDRESS_SPACE_MEMORY and ADDRESS_SPACE_IO stand for under this binding.
        self.memory = memory
        self.io = io

    def restore(self) -> None:
        """Bind what was bound before; a second time does nothing."""
        global _bindings
        with _lock:
            _bindings = tuple(binding for binding in _bindings if binding is not self)

    def __enter__(self) -> Binding:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.restore()


_lock = threading.Lock()
#: The newest last; replaced as a whole, so that a reader needs no lock.
_bindings: tuple[Binding, ...] = ()


def bind(memory: c_face.AddressSpace, io: c_face.AddressSpace | None = None) -> Binding:
    """Let ADDRESS_SPACE_MEMORY and ADDRESS_SPACE_IO stand for these spaces, from now on until
    the result is restored. ``io`` is None for a machine without port I/O."""
    global _bindings
    binding = Binding(memory, io)
    with _lock:
        _bindings = (*_bindings, binding)
    return binding


class _MachineSpace(AddressSpace):
    """Looks up its space at each use."""

    __slots__ = ("_attribute", "_name")

    def __init__(self, name: str, attribute: str) -> None:
        self._name = name
        self._attribute = attribute

    @property
    def space(self) -> c_face.AddressSpace:
        """The bound space with the C face. Raises ModelError if there is none."""
        bindings = _bindings
        if not bindings:
            raise ModelError(
                f"{self._name} stands for nothing yet: mirror a machine and call its bind(), "
                "or bind(memory=…, io=…) spaces of your own"
            )
        space: c_face.AddressSpace | None = getattr(bindings[-1], self._attribute)
        if space is None:
            raise ModelError(f"{self._name}: the machine that is bound has no such space")
        return space

    def __repr__(self) -> str:
        return f"<{self._name}>"


#: The whole memory of the guest: QEMU's ``address_space_memory``.
ADDRESS_SPACE_MEMORY: AddressSpace = _MachineSpace("ADDRESS_SPACE_MEMORY", "memory")
#: The ports of the guest, 64 KiB: QEMU's ``address_space_io``.
ADDRESS_SPACE_IO: AddressSpace = _MachineSpace("ADDRESS_SPACE_IO", "io")
