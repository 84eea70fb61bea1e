"""What is compared, on what, by which measures."""

from __future__ import annotations

from pathlib import Path

#: Arm -> (engine, feedback, further switches).
ARMS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "random": ("random", "none", ()),
    "even": ("random", "none", ("even",)),
    "blind": ("atheris", "none", ()),
    "transcript": ("atheris", "transcript", ()),
    "all": ("atheris", "all", ()),
    "all-no-hints": ("atheris", "all", ("no-hints",)),
    "all-once": ("atheris", "all", ("once",)),
    "all-hints-only": ("atheris", "all", ("no-counters",)),
}
HELP_ARMS = ("random: programs drawn; even: without wild (swarm) weights; blind: Atheris without "
             "QEMU's counters; transcript, all: with them; all-no-hints: counters only; "
             "all-hints-only: hints only; all-once: noise is not looked for")

#: Device sets, by name.
SETUPS: dict[str, tuple[str, ...]] = {
    "access": ("edu", "pci-testdev", "virtio-rng-pci"),
    "e1000e": ("e1000e",),
    "xhci": ("qemu-xhci",),
    "sdhci": ("sdhci-pci", "sd-card"),
}
MEASURES = ("states", "events", "shapes")
SEEDS = 10
PROGRAMS = 1000
#: One run is given so long before it counts as failed.
RUN_TIMEOUT_S = 1800.0


def result_path(out: Path, setup: str, arm: str, seed: int) -> Path:
    """Where a run leaves its result."""
    return out / f"{setup}.{arm}.{seed}.json"
