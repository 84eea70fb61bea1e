"""What the tree text does not say and the flat views gave away, one fact each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from qemuglue.memory import MemoryRegion

Pair = tuple[MemoryRegion, MemoryRegion]
#: (owner, name, key of the target) that aliases made for one purpose share.
Kin = tuple[str, str, object]


@dataclass(frozen=True, slots=True)
class Inference:
    """Facts taken from flat views, counted: orders of two siblings of equal priority, single
    bits (a region answers itself or not, is read-only, is empty, does not merge), and which of
    several same-named regions an alias shows. ``facts`` says each in words."""

    pairs: int = 0
    bits: int = 0
    aliases: int = 0
    facts: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        return self.pairs + self.bits + self.aliases

    def __str__(self) -> str:
        words = []
        for count, noun in (
            (self.pairs, "pair order"), (self.bits, "bit"), (self.aliases, "alias target"),
        ):
            if count:
                words.append(f"{count} {noun}{'s' if count > 1 else ''}")
        return ", ".join(words) or "nothing"


NOTHING = Inference()


@dataclass(slots=True)
class Facts:
    """Facts that hold now, by region. Only what deviates from the default is kept: a fact that
    the text alone would have given is none."""

    terminates: dict[MemoryRegion, bool] = field(default_factory=dict)
    readonly: dict[MemoryRegion, bool] = field(default_factory=dict)
    #: What the first of several kin showed, taken for the others. No fact of its own.
    kin: dict[Kin, bool] = field(default_factory=dict)
    empty: dict[MemoryRegion, bool] = field(default_factory=dict)
    unmergeable: set[MemoryRegion] = field(default_factory=set)
    #: First before second, both children of the key.
    pairs: dict[MemoryRegion, set[Pair]] = field(default_factory=dict)
    aliases: dict[MemoryRegion, MemoryRegion] = field(default_factory=dict)

    def copy(self) -> Facts:
        return Facts(
            dict(self.terminates), dict(self.readonly), dict(self.kin),
            dict(self.empty), set(self.unmergeable),
            {container: set(pairs) for container, pairs in self.pairs.items()},
            dict(self.aliases),
        )

    def inference(self, before: Facts | None = None) -> Inference:
        """Count the facts; with ``before``, only those that are not in it."""
        said = dict.fromkeys(self._said())
        if before is not None:
            for item in before._said():
                said.pop(item, None)
        counts = {"pair": 0, "bit": 0, "alias": 0}
        for sort, *_ in said:
            counts[sort] += 1
        return Inference(
            counts["pair"], counts["bit"], counts["alias"], tuple(item[1] for item in said)
        )

    def _said(self) -> Iterator[tuple[str, str, tuple[object, ...]]]:
        """(sort, in words, identity)."""
        for container, pairs in self.pairs.items():
            for first, second in sorted(pairs, key=lambda pair: (pair[0].addr, pair[1].addr)):
                yield ("pair", f"in {container.name!r}: {at(first)} lies over {at(second)}",
                       (first, second))
        for region, value in self.terminates.items():
            yield "bit", f"{at(region)} {does(value)} for itself", (region, "terminates", value)
        for region, value in self.readonly.items():
            yield ("bit", f"{at(region)} is {'' if value else 'not '}read-only",
                   (region, "readonly", value))
        for region, value in self.empty.items():
            yield ("bit", f"{at(region)} is {'' if value else 'not '}empty",
                   (region, "empty", value))
        for region in self.unmergeable:
            yield "bit", f"{at(region)} does not merge", (region, "unmergeable")
        for region, target in self.aliases.items():
            yield "alias", f"{at(region)} shows {target.key}", (region, target)


def at(region: MemoryRegion) -> str:
    """A region in words."""
    return f"{region.name!r} at {region.addr:#x}"


def does(answers: bool) -> str:
    return "answers" if answers else "does not answer"
