"""The naive oracles of the target ``model``, under the names the tests use."""

from __future__ import annotations

from random import Random

from qemuglue.campaign.inputs.faults import Fault
from qemuglue.campaign.model.laws import accessing
from qemuglue.campaign.model.oracle import (
    ACCESS_ERROR,
    DECODE_ERROR,
    ERROR,
    OK,
    PAGE,
    WINDOW,
    Event,
    Oracle,
    Recorder,
    device_status,
    device_value,
    random_contract,
    random_map,
)
from qemuglue.campaign.model.painting import (
    MEMORY,
    TOP,
    Node,
    Painted,
    Spot,
    build,
    contents,
    paint,
    random_tree,
    spot,
    top_of,
)
from qemuglue.memory import Rules

__all__ = [
    "ACCESS_ERROR", "DECODE_ERROR", "ERROR", "MEMORY", "OK", "PAGE", "TOP", "WINDOW", "Event",
    "Node", "Oracle", "Painted", "Recorder", "Spot", "build", "compare_accesses", "contents",
    "device_status", "device_value", "paint", "random_contract", "random_map", "random_tree",
    "spot", "top_of",
]


def compare_accesses(rng: Random, rules: Rules, *, accesses: int) -> None:
    """One random map, so many random accesses: the model under ``rules`` against the oracle."""
    try:
        accessing(rng, lambda version: rules, accesses)
    except Fault as fault:
        raise AssertionError(str(fault)) from fault
