"""What probes show, in words: the evidence that stands beside a contract."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from qemuglue.memory.contract import Endian
from qemuglue.memory.rules import Rules
from qemuglue.witness.contract_table import Accepts, Access, ContractSizes
from qemuglue.witness.contracts import Learned
from qemuglue.witness.explaining import alternatives
from qemuglue.witness.probing import Probe

#: Spans of offsets that are named; the count tells of the rest.
_SPANS = 4


def access_of(
    rules: Rules, probes: Sequence[Probe], learned: Learned, veto: Accepts | None,
    notes: Iterable[str],
) -> Access:
    """One direction of a row. Of a device that vetoes nearly everything the sizes are what
    little can be seen: ``alternatives`` says how little."""
    order = ""
    if learned.endian_known:
        order = "big" if learned.contract.endian is Endian.BIG else "little"
    return Access(
        sizes=ContractSizes.of(learned.contract), order=order,
        alternatives=alternatives(rules, probes, learned.contract), accepts=veto,
        probes=len(probes), evidence=(*_evidence(probes, order), *notes),
    )


def unknown(why: str, probes: Sequence[Probe], notes: Iterable[str]) -> Access:
    """A direction of which nothing was learnt."""
    return Access(unknown=why, probes=len(probes), evidence=(*_evidence(probes, ""), *notes))


def _evidence(probes: Sequence[Probe], order: str) -> Iterator[str]:
    if not probes:
        return
    verb = "writes" if probes[0].is_write else "reads"
    offsets = sorted({probe.offset for probe in probes})
    spans = list(_spans(offsets))
    named = ", ".join(spans[:_SPANS]) + (", …" if len(spans) > _SPANS else "")
    yield f"{len(probes)} {verb} at {len(offsets)} offsets: {named}"
    refused: Counter[str] = Counter()
    first: dict[str, Probe] = {}
    for probe in probes:
        for why in dict.fromkeys(s.reason for s in probe.seen if s.reason is not None):
            refused[why] += 1
            first.setdefault(why, probe)
    for why, count in sorted(refused.items()):
        limits = {(s.minimum, s.maximum) for s in first[why].seen if s.reason == "invalid size"}
        named = "".join(f" (min {low}, max {high})" for low, high in sorted(limits))
        yield f"{count} with a refusal for {why}{named}, first a {first[why]}"
    yield from _telling(probes)
    if order:
        yield from _order_shown(probes, order)


def _spans(offsets: list[int]) -> Iterator[str]:
    start = stop = offsets[0]
    for offset in [*offsets[1:], None]:
        if offset is not None and offset == stop + 1:
            stop = offset
            continue
        yield f"+{start:#x}" if start == stop else f"+{start:#x}..{stop:#x}"
        if offset is not None:
            start = stop = offset


def _telling(probes: Sequence[Probe]) -> Iterator[str]:
    """An aligned access of each size that was made of other calls than itself, and the largest
    that was one call."""
    whole: Probe | None = None
    for size in (1, 2, 4, 8):
        for probe in probes:
            aligned = probe.size == size and probe.offset % size == 0 and not probe.crossing
            if not aligned or not probe.seen or any(s.reason for s in probe.seen):
                continue
            if len(probe.seen) == 1 and probe.seen[0].size == size:
                whole = probe
            else:
                yield f"cut or widened: a {probe}"
            break
    if whole is not None:
        yield f"the largest that was one call: a {whole}"


def _order_shown(probes: Sequence[Probe], order: str) -> Iterator[str]:
    for probe in probes:
        call = probe.seen[0] if probe.seen else None
        if (
            call is not None and call.reason is None and call.size > 1
            and probe.data[: call.size] != probe.data[: call.size][::-1]
            and not probe.crossing and call.size <= probe.size
        ):
            data = probe.data[: call.size].hex(" ")
            verb = "were written and reached" if probe.is_write else "were read and came from"
            yield (f"{order}-endian: the bytes {data} at +{probe.offset:#x} {verb} the device "
                   f"as {call.value:#x}")
            return
