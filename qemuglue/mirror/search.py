"""Choose among explanations: one view can often be explained in more than one way.

A run of the learner takes the likeliest explanation of each address and stays with it; what
is wrong with one shows only in another view. So a run that does not end well is repeated with
other preferences, then with other alias targets, always from the same start. The first that
makes every view right is kept, else the one that leaves the fewest ranges wrong. All of it
together may cost so many steps and no more (``effort``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice

from qemuglue.errors import ProtocolError
from qemuglue.memory import MemoryRegion
from qemuglue.mirror.effort import Effort
from qemuglue.mirror.facts import Facts
from qemuglue.mirror.infer import Learner, Observed
from qemuglue.mirror.model import Model, Snapshot

#: Runs with other alias targets, at most.
MAX_TRIALS = 64

#: Worse than any number of wrong ranges.
_NEVER = 1 << 64

Targets = dict[MemoryRegion, MemoryRegion]
Run = Callable[[Targets], int]


def learn(model: Model, observed: Sequence[Observed], effort: Effort) -> None:
    """Teach ``model`` what makes its views right, or the rightest that could be found before
    ``effort`` was spent."""
    before = model.snapshot()
    runs = _runs(model, before, observed, effort)
    if before.facts != Facts():
        # Something learnt in an earlier state may have been the wrong explanation.
        runs += _runs(model, model.blank(), observed, effort)
    best, best_run, best_state = _NEVER, runs[0], before
    for run in runs:
        result = run({})
        if not result:
            return
        if result < best:
            best, best_run, best_state = result, run, model.snapshot()
        if effort.spent:
            break
    chosen: Targets = {}
    for alias, target in _trials(model):
        if effort.spent:
            break
        result = best_run({**chosen, alias: target})
        if not result:
            return
        if result < best:
            best, best_state = result, model.snapshot()
            chosen = {**chosen, alias: target}
    model.restore(best_state)


def _trials(model: Model) -> list[tuple[MemoryRegion, MemoryRegion]]:
    """(alias, other target it may have)."""
    every = ((alias, target) for alias, options in model.options.items() for target in options[1:])
    return list(islice(every, MAX_TRIALS))


def _runs(
    model: Model, before: Snapshot, observed: Sequence[Observed], effort: Effort
) -> list[Run]:
    return [
        _run(model, before, views, effort, last_first)
        for last_first in (False, True)
        for views in (observed, observed[::-1])
    ]


def _run(
    model: Model, before: Snapshot, observed: Sequence[Observed], effort: Effort,
    last_first: bool,
) -> Run:
    def run(chosen: Targets) -> int:
        model.restore(before)
        for alias, target in chosen.items():
            model.set_target(alias, target)
        try:
            effort.spend(len(model.regions))
            return Learner(model, observed, effort, last_first=last_first).learn()
        except ProtocolError:
            return _NEVER  # the alias targets make a cycle, or the effort is spent

    return run
