"""What a reset copies into RAM again, read from ``info roms``."""

from __future__ import annotations

from qemuglue.qemu.roms import restored


def test_only_blobs_in_ram_count() -> None:
    text = (
        'addr=00000000fffe0000 size=0x020000 mem=ram name="bios-microvm.bin"\r\n'
        'addr=00000000fffc0000 size=0x040000 mem=rom name="bios-256k.bin"\r\n'
        '/rom@etc/acpi/tables size=0x200000 name="etc/acpi/tables"\r\n'
        'addr=0000000000000000 size=0x000001 mem=ram name="addr=0 size=0x9 mem=ram"\r\n'
    )
    assert restored(text) == [(0xFFFE0000, 0x20000), (0, 1)]


def test_garbage_is_skipped() -> None:
    assert restored("addr=xyz size=0x1 mem=ram\n\n\x00addr=0 size=0x1 mem=ram\n") == []
