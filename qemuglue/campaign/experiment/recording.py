"""What QEMU's transcript showed in one run, by code of its own: the counters that steer must not
be their own judges."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from qemuglue.campaign.feedback import shape_id

_EVENT = re.compile(r"[a-z0-9]+(_[a-z0-9]+)+")


@dataclass(slots=True)
class Recording:
    """What QEMU's transcript showed, counted on its own."""

    states: set[tuple[str, ...]] = field(default_factory=set)
    events: set[str] = field(default_factory=set)
    shapes: set[int] = field(default_factory=set)
    #: (programs, states, events, shapes), now and then.
    curve: list[tuple[int, int, int, int]] = field(default_factory=list)

    def hear(self, text: bytes, sizes: dict[str, int]) -> None:
        """Read whole lines. ``sizes`` are regions' sizes by name: with them an address becomes
        an offset, wherever the region is at the moment."""
        for line in text.decode("latin-1").split("\n"):
            word, _, rest = line.partition(" ")
            if word.startswith("memory_region_ops_"):
                self._access(word[18:], rest, sizes)
            elif word == "Invalid":
                self._refusal(rest)
            elif _EVENT.fullmatch(word) and not word.startswith(("memory_region", "flatview")):
                self.events.add(word)
                self.shapes.add(shape_id(_widths(line)))

    def _access(self, verb: str, rest: str, sizes: dict[str, int]) -> None:
        words, _, name = rest.partition(" name '")
        fields = words.split(" ")
        if len(fields) < 9 or not name:
            return
        name = name.rstrip("'\r")
        room = 1 << max(0, sizes.get(name, 0x1000) - 1).bit_length()
        offset = int(fields[5], 16) & (room - 1)
        self.states.add((name, f"{offset:x}", fields[-1], verb))

    def _refusal(self, rest: str) -> None:
        where, _, why = rest.partition(", reason: ")
        words = where.split(", ")
        if len(words) < 3:
            return
        name = words[2].removeprefix("region ")
        if "(null)" in name:
            return  # where nothing is, every address is alike
        self.states.add((name, words[0].split(" ")[-1], words[1], why.split(" ")[0]))

    def note(self, programs: int) -> None:
        """A point of the curve."""
        self.curve.append((programs, len(self.states), len(self.events), len(self.shapes)))

    def to_json(self) -> dict[str, Any]:
        return {"states": len(self.states), "events": len(self.events),
                "shapes": len(self.shapes), "curve": self.curve,
                "names": sorted(self.events)}


def _widths(line: str) -> str:
    """A line with each number replaced by its width in bits; pointers by nothing."""
    out: list[str] = []
    for word in line.replace(",", " ").replace(":", " ").replace("=", " ").split():
        try:
            number = int(word, 0) if word.startswith("0x") or word.isdecimal() else int(word, 16)
            bits = number.bit_length()
            out.append("*" if bits > 36 else str(bits))
        except ValueError:
            out.append(word)
    return " ".join(out)
