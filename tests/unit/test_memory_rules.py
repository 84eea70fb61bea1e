"""Every rule's check over every rule set, and what differs between versions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import rule_checks
from rule_checks import ANY, CHECKS, Device, io, space_of

from qemuglue.memory import Contract, MemoryRegion, MemTxAttrs, Rules, rules_for
from qemuglue.memory.rules import (
    RULES_7_2,
    RULES_7_2_UNGUARDED,
    RULES_8_1,
    RULES_9_0,
    RULES_9_2,
    RULES_10_0,
    RULES_LATEST,
)

ALL = (RULES_7_2_UNGUARDED, RULES_7_2, RULES_8_1, RULES_9_0, RULES_9_2,
       RULES_10_0, RULES_LATEST)


@pytest.mark.parametrize("rules", ALL, ids=lambda rules: rules.name)
@pytest.mark.parametrize("check", sorted(set(CHECKS.values()), key=lambda check: check.__name__),
                         ids=lambda check: check.__name__)
def test_rule(check: Callable[[Rules], None], rules: Rules) -> None:
    check(rules)


@pytest.mark.parametrize("rules", ALL, ids=lambda rules: rules.name)
def test_random_maps(rules: Rules) -> None:
    # The oracle's debug writes are those of 10.0.
    if rules.debug_writes_rom:
        rule_checks.random_maps(rules)
    else:
        with pytest.raises(AssertionError):
            rule_checks.random_maps(rules)


@pytest.mark.parametrize(("version", "rules"), [
    ((5, 2, 0), RULES_7_2_UNGUARDED), ((7, 2, 5), RULES_7_2_UNGUARDED), ((7, 2, 6), RULES_7_2),
    ((7, 2, 22), RULES_7_2), ((8, 0, 5), RULES_7_2_UNGUARDED), ((8, 1), RULES_8_1),
    ((8, 2, 9), RULES_8_1), ((9, 1), RULES_9_0), ((9, 2, 4), RULES_9_2),
    ((10, 0, 2), RULES_10_0), ((10, 2), RULES_10_0),
    ((11, 1, 3), RULES_LATEST), ((12,), RULES_LATEST),
])
def test_rules_for_a_version(version: tuple[int, ...], rules: Rules) -> None:
    assert rules_for(version) is rules


class _EntersTwice(Device):
    """While its register is read, it reads the opted-out region, then its register again."""

    def __init__(self) -> None:
        super().__init__()
        self.results: list[int] = []

    def read(
        self, region: MemoryRegion, offset: int, size: int, attrs: MemTxAttrs
    ) -> tuple[int, int]:
        if region.name == "register" and not self.results:
            self.results.append(-1)
            self.results = [self.space.read(address, 1)[0] for address in (0x100, 0)]
        return super().read(region, offset, size, attrs)


@pytest.mark.parametrize(("rules", "second"), [(RULES_7_2, 0), (RULES_10_0, 4)],
                         ids=lambda value: getattr(value, "name", str(value)))
def test_an_unguarded_access_lifts_the_guard_on_7_2_only(rules: Rules, second: int) -> None:
    register, free = io(ANY, "register"), io(ANY, "free")
    register.owner = free.owner = "nic"
    free.guarded = False
    space, _ = space_of(rules, (0, register), (0x100, free))
    device = _EntersTwice()
    device.space = space
    space.ops = device
    assert space.read(0, 1) == (0, b"\x01")
    assert device.results == [0, second]
    assert not space.engaged


def test_a_device_that_raises_is_released() -> None:
    class Broken(Device):
        def read(self, *_: object) -> tuple[int, int]:
            raise ZeroDivisionError

        def write(self, *_: object) -> int:
            raise ZeroDivisionError

    region = io(Contract())
    region.owner = "nic"
    space, _ = space_of(RULES_10_0, (0, region))
    space.ops = Broken()
    for attempt in range(2):
        with pytest.raises(ZeroDivisionError):
            space.read(0, 1)
        with pytest.raises(ZeroDivisionError):
            space.write(0, b"\0")
        assert not space.engaged, attempt
