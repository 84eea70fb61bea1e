"""Every rule is tested: each method of Rules, made wrong in several ways, must fail its check.

A defect is a subclass of Rules with one method wrong. The check of that method (tests/
rule_checks.py) has to notice every one of them, on its own; a method of Rules without a defect
here, or without a check, fails too.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
from rule_checks import CHECKS, random_maps

from qemuglue.errors import ModelError
from qemuglue.memory import UNSPECIFIED, Rules
from qemuglue.memory.contract import Contract, Reason
from qemuglue.memory.region import RegionKind
from qemuglue.memory.rules import RULES_10_0, Piece

Real = Rules

#: (method, what is wrong, the method as it should not be)
DEFECTS: list[tuple[str, str, Callable[..., Any]]] = []


def defect(method: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(wrong: Callable[..., Any]) -> Callable[..., Any]:
        DEFECTS.append((method, wrong.__name__, wrong))
        return wrong
    return register


# -- R1 ------------------------------------------------------------------------------------


@defect("refusal")
def never_refuses(
    self: Rules, contract: Contract, offset: int, size: int, is_write: bool, *attrs: Any
) -> Any:
    return None


@defect("refusal")
def alignment_before_veto(
    self: Rules, contract: Contract, offset: int, size: int, is_write: bool, *attrs: Any
) -> Any:
    if not contract.valid_unaligned and offset & (size - 1):
        return Reason.UNALIGNED
    return Real.refusal(self, contract, offset, size, is_write, *attrs)


@defect("refusal")
def size_before_alignment(
    self: Rules, contract: Contract, offset: int, size: int, is_write: bool, *attrs: Any
) -> Any:
    reason = Real.refusal(self, contract, offset, size, is_write, *attrs)
    if reason is Reason.UNALIGNED and contract.valid_max and size < contract.valid_min:
        return Reason.INVALID_SIZE
    return reason


@defect("refusal")
def least_size_without_most(
    self: Rules, contract: Contract, offset: int, size: int, is_write: bool, *attrs: Any
) -> Any:
    if size < contract.valid_min:
        return Reason.INVALID_SIZE
    return Real.refusal(self, contract, offset, size, is_write, *attrs)


@defect("refusal")
def most_defaults_to_four(
    self: Rules, contract: Contract, offset: int, size: int, is_write: bool, *attrs: Any
) -> Any:
    if size > (contract.valid_max or 4):
        return Reason.INVALID_SIZE
    return Real.refusal(self, contract, offset, size, is_write, *attrs)


@defect("refusal")
def most_is_excluded(
    self: Rules, contract: Contract, offset: int, size: int, is_write: bool, *attrs: Any
) -> Any:
    if contract.valid_max and size == contract.valid_max:
        return Reason.INVALID_SIZE
    return Real.refusal(self, contract, offset, size, is_write, *attrs)


@defect("refusal")
def impl_unaligned_admits(
    self: Rules, contract: Contract, offset: int, size: int, is_write: bool, *attrs: Any
) -> Any:
    reason = Real.refusal(self, contract, offset, size, is_write, *attrs)
    return None if reason is Reason.UNALIGNED and size == 2 else reason


@defect("refusal")
def veto_asked_for_reads(
    self: Rules, contract: Contract, offset: int, size: int, is_write: bool, *attrs: Any
) -> Any:
    return Real.refusal(self, contract, offset, size, False, *attrs)


# -- R2 ------------------------------------------------------------------------------------


@defect("refused_value")
def all_ones(self: Rules, size: int) -> int:
    return (1 << 8 * size) - 1


@defect("swallowed")
def nothing_swallowed(self: Rules, region: Any, offset: int, size: int, value: int) -> bool:
    return False


@defect("swallowed")
def any_size(self: Rules, region: Any, offset: int, size: int, value: int) -> bool:
    return any(fd.addr == offset and fd.data in (None, value) for fd in region.ioeventfds)


@defect("swallowed")
def no_wildcard_size(self: Rules, region: Any, offset: int, size: int, value: int) -> bool:
    return any(
        fd.addr == offset and fd.size == size and fd.data in (None, value)
        for fd in region.ioeventfds
    )


@defect("swallowed")
def data_not_compared(self: Rules, region: Any, offset: int, size: int, value: int) -> bool:
    return any(fd.addr == offset and fd.size in (0, size) for fd in region.ioeventfds)


@defect("swallowed")
def anywhere_inside(self: Rules, region: Any, offset: int, size: int, value: int) -> bool:
    return Real.swallowed(self, region, offset, size, value) or any(
        fd.addr <= offset < fd.addr + fd.size for fd in region.ioeventfds
    )


# -- R3 ------------------------------------------------------------------------------------


@defect("pieces")
def never_split(self: Rules, contract: Contract, size: int, big: bool) -> Any:
    return (Piece(0, size, 0),)


@defect("pieces")
def last_first(self: Rules, contract: Contract, size: int, big: bool) -> Any:
    return Real.pieces(self, contract, size, big)[::-1]


@defect("pieces")
def order_ignored(self: Rules, contract: Contract, size: int, big: bool) -> Any:
    return Real.pieces(self, contract, size, False)


@defect("pieces")
def never_widened(self: Rules, contract: Contract, size: int, big: bool) -> Any:
    access = min(size, contract.impl_max or 4)
    return tuple(
        Piece(at, access, (size - access - at if big else at) * 8)
        for at in range(0, size, access)
    )


@defect("pieces")
def most_beats_least(self: Rules, contract: Contract, size: int, big: bool) -> Any:
    access = min(max(size, contract.impl_min or 1), contract.impl_max or 4)
    return tuple(
        Piece(at, access, (size - access - at if big else at) * 8)
        for at in range(0, size, access)
    )


@defect("pieces")
def most_defaults_to_eight(self: Rules, contract: Contract, size: int, big: bool) -> Any:
    most = contract.impl_max or 8
    return Real.pieces(self, Contract(impl_min=contract.impl_min, impl_max=most), size, big)


@defect("pieces")
def widened_takes_low_bytes(self: Rules, contract: Contract, size: int, big: bool) -> Any:
    return tuple(
        Piece(piece.delta, piece.size, max(piece.shift, 0))
        for piece in Real.pieces(self, contract, size, big)
    )


@defect("pieces")
def last_piece_lost(self: Rules, contract: Contract, size: int, big: bool) -> Any:
    every = Real.pieces(self, contract, size, big)
    return every[:-1] if len(every) > 1 else every


# -- R4 ------------------------------------------------------------------------------------


@defect("blocked")
def reentry_allowed(self: Rules, engaged: bool) -> bool:
    return False


@defect("blocked")
def always_blocked(self: Rules, engaged: bool) -> bool:
    return True


@defect("guarded")
def nothing_guarded(self: Rules, region: Any) -> bool:
    return False


@defect("guarded")
def opted_out_guarded(self: Rules, region: Any) -> bool:
    return (not region.readonly and not region.is_ram
            and region.kind is not RegionKind.ROM_DEVICE)


@defect("guarded")
def rom_device_guarded(self: Rules, region: Any) -> bool:
    return bool(region.guarded and not region.readonly and not region.is_ram)


@defect("guarded")
def readonly_guarded(self: Rules, region: Any) -> bool:
    return bool(region.guarded and region.kind is not RegionKind.ROM_DEVICE)


# -- R5 ------------------------------------------------------------------------------------


@defect("big")
def always_little(self: Rules, contract: Contract, target_big: bool) -> bool:
    return False


@defect("big")
def always_the_targets(self: Rules, contract: Contract, target_big: bool) -> bool:
    return target_big


@defect("big")
def native_is_little(self: Rules, contract: Contract, target_big: bool) -> bool:
    return contract.big(False)


@defect("big")
def swapped(self: Rules, contract: Contract, target_big: bool) -> bool:
    return not contract.big(target_big)


# -- R6 ------------------------------------------------------------------------------------


@defect("chunk")
def a_byte_at_a_time(self: Rules, contract: Contract, length: int, offset: int) -> int:
    return 1


@defect("chunk")
def alignment_ignored(self: Rules, contract: Contract, length: int, offset: int) -> int:
    return Real.chunk(self, contract, length, 0)


@defect("chunk")
def unaligned_ignored(self: Rules, contract: Contract, length: int, offset: int) -> int:
    return Real.chunk(self, Contract(valid_max=contract.valid_max), length, offset)


@defect("chunk")
def valid_unaligned_counts(self: Rules, contract: Contract, length: int, offset: int) -> int:
    if contract.valid_unaligned:
        offset = 0
    return Real.chunk(self, contract, length, offset)


@defect("chunk")
def cap_defaults_to_eight(self: Rules, contract: Contract, length: int, offset: int) -> int:
    most = contract.valid_max or 8
    return Real.chunk(
        self, Contract(valid_max=most, impl_unaligned=contract.impl_unaligned), length, offset
    )


@defect("chunk")
def cap_is_impl_max(self: Rules, contract: Contract, length: int, offset: int) -> int:
    return min(Real.chunk(self, contract, length, offset), contract.impl_max or 4)


# -- R7 ------------------------------------------------------------------------------------


@defect("region_offset")
def alias_offset_dropped(self: Rules, section: Any, addr: int) -> int:
    return int(addr - section.start)


@defect("region_offset")
def alias_offset_one_off(self: Rules, section: Any, addr: int) -> int:
    return Real.region_offset(self, section, addr) + bool(section.offset)


@defect("clamp")
def nothing_clamped(self: Rules, section: Any, addr: int, length: int, *page: int) -> int:
    return length


@defect("clamp")
def devices_clamped(self: Rules, section: Any, addr: int, length: int, *page: int) -> int:
    return min(length, int(section.start + section.size - addr))


@defect("clamp")
def one_byte_short(self: Rules, section: Any, addr: int, length: int, *page: int) -> int:
    n = Real.clamp(self, section, addr, length, *page)
    return n - 1 if 1 < n < length else n


@defect("clamp")
def one_byte_over(self: Rules, section: Any, addr: int, length: int, *page: int) -> int:
    n = Real.clamp(self, section, addr, length, *page)
    return n + 1 if n < length else n


@defect("dispatch_end")
def sections_in_one_part(self: Rules, section: Any, addr: int, page_bits: int) -> int:
    return int(section.start + section.size)


@defect("dispatch_end")
def every_page_a_part(self: Rules, section: Any, addr: int, page_bits: int) -> int:
    return min(Real.dispatch_end(self, section, addr, page_bits), (addr >> 12 << 12) + 0x1000)


@defect("dispatch_end")
def last_part_not_cut(self: Rules, section: Any, addr: int, page_bits: int) -> int:
    end = int(section.start + section.size)
    return end if addr >= 0x1000 else Real.dispatch_end(self, section, addr, page_bits)


@defect("dispatch_end")
def holes_end(self: Rules, section: Any, addr: int, page_bits: int) -> int:
    end = int(section.start + section.size)
    return end if not section.assigned else Real.dispatch_end(self, section, addr, page_bits)


@defect("rom_writable")
def rom_not_loaded(self: Rules, region: Any) -> bool:
    return Real.direct_write(self, region, UNSPECIFIED)


@defect("rom_writable")
def flash_always_loaded(self: Rules, region: Any) -> bool:
    return bool(region.kind is RegionKind.ROM_DEVICE or Real.rom_writable(self, region))


@defect("rom_writable")
def cards_loaded(self: Rules, region: Any) -> bool:
    return bool(region.is_ram or Real.rom_writable(self, region))


# -- R8 ------------------------------------------------------------------------------------


@defect("combine")
def last_result_counts(self: Rules, result: int, piece: int) -> int:
    return piece


@defect("combine")
def first_error_counts(self: Rules, result: int, piece: int) -> int:
    return result or piece


@defect("combine")
def worst_counts(self: Rules, result: int, piece: int) -> int:
    return max(result, piece)


@defect("goes_on")
def stops_at_any_error(self: Rules, result: int) -> bool:
    return result == 0


@defect("goes_on")
def stops_at_decode_errors(self: Rules, result: int) -> bool:
    return not result & 2


@defect("allowed")
def everything_allowed(self: Rules, region: Any, attrs: Any) -> bool:
    return True


@defect("allowed")
def nothing_allowed(self: Rules, region: Any, attrs: Any) -> bool:
    return not attrs.memory


@defect("allowed")
def rom_device_is_memory(self: Rules, region: Any, attrs: Any) -> bool:
    return not attrs.memory or region.is_ram or region.kind is RegionKind.ROM_DEVICE


@defect("allowed")
def rom_is_not_memory(self: Rules, region: Any, attrs: Any) -> bool:
    return not attrs.memory or region.kind is RegionKind.RAM


# -- R9 ------------------------------------------------------------------------------------


@defect("direct_read")
def rom_device_never_direct(self: Rules, region: Any) -> bool:
    return bool(region.is_ram and region.kind is not RegionKind.RAM_DEVICE)


@defect("direct_read")
def rom_device_always_direct(self: Rules, region: Any) -> bool:
    return region.kind is RegionKind.ROM_DEVICE or Real.direct_read(self, region)


@defect("direct_read")
def ram_device_direct(self: Rules, region: Any) -> bool:
    return region.kind is RegionKind.RAM_DEVICE or Real.direct_read(self, region)


@defect("direct_read")
def rom_not_direct(self: Rules, region: Any) -> bool:
    return not region.readonly and Real.direct_read(self, region)


@defect("direct_write")
def readonly_ignored(self: Rules, region: Any, attrs: Any) -> bool:
    return bool(region.is_ram and region.kind is not RegionKind.RAM_DEVICE)


@defect("direct_write")
def rom_device_written(self: Rules, region: Any, attrs: Any) -> bool:
    return region.kind is RegionKind.ROM_DEVICE or Real.direct_write(self, region, attrs)


@defect("direct_write")
def nothing_direct(self: Rules, region: Any, attrs: Any) -> bool:
    return False


@defect("direct_write")
def debug_ignored(self: Rules, region: Any, attrs: Any) -> bool:
    return bool(region.kind is RegionKind.RAM and not region.readonly)


@defect("direct_write")
def ram_device_written(self: Rules, region: Any, attrs: Any) -> bool:
    return region.kind is RegionKind.RAM_DEVICE or Real.direct_write(self, region, attrs)


# -- R11 -----------------------------------------------------------------------------------


@defect("port_root_value")
def ports_read_zeros(self: Rules, size: int) -> int:
    return 0


@defect("port_root_value")
def ports_read_one_byte_of_ones(self: Rules, size: int) -> int:
    return 0xFF


def _broken(method: str, wrong: Callable[..., Any]) -> Rules:
    kind: type[Rules] = type(f"Wrong_{method}", (Rules,), {method: wrong})
    return kind("broken")


@pytest.mark.parametrize(
    ("method", "wrong"), [pytest.param(m, w, id=f"{m}-{n}") for m, n, w in DEFECTS]
)
def test_the_check_of_a_rule_notices_a_defect_in_it(
    method: str, wrong: Callable[..., Any]
) -> None:
    with pytest.raises(AssertionError):
        CHECKS[method](_broken(method, wrong))


def test_every_method_of_rules_has_a_check_and_a_defect() -> None:
    methods = {
        name for name, _ in inspect.getmembers(Rules, inspect.isfunction)
        if not name.startswith("_")
    }
    assert methods == set(CHECKS)
    assert methods == {method for method, _, _ in DEFECTS}


def test_random_maps_alone_notice_most_defects() -> None:
    """The maps hold no eventfd, port, RAM device, re-entering device or whole page, and no
    firmware is loaded; all else must show."""
    elsewhere = (
        "swallowed", "blocked", "guarded", "port_root_value", "dispatch_end", "rom_writable",
    )
    unseen = [
        name for method, name, wrong in DEFECTS
        if method not in elsewhere and not name.startswith("ram_device_")
        and not _noticed(_broken(method, wrong))
    ]
    assert not unseen


def _noticed(rules: Rules) -> bool:
    try:
        random_maps(rules)
    except (AssertionError, ModelError):
        return True
    return False


def test_a_rule_set_without_defects_passes() -> None:
    random_maps(RULES_10_0)
    for check in CHECKS.values():
        check(_broken("pieces", Real.pieces))
