"""Choose among explanations: one view can often be explained in more than one way.

A run of the learner takes the likeliest explanation of each address and stays with it; what
is wrong with one shows only in another view. So a run that does not end well is repeated with
other preferences, then with other alias targets, always from the same start. The first that
makes every view right is kept, else the one that leaves the fewest ranges wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from qemuglue.errors import ProtocolError
from qemuglue.memory import MemoryRegion
from qemuglue.mirror.facts import Facts
from qemuglue.mirror.infer import Learner, Observed
from qemuglue.mirror.model import Model, Snapshot

#: Runs with other alias targets, at most.
MAX_TRIALS = 64

#: Worse than any number of wrong ranges.
_NEVER = 1 << 64

Targets = dict[MemoryRegion, MemoryRegion]
Run = Callable[[Targets], int]


def learn(model: Model, observed: Sequence[Observed]) -> None:
    """Teach ``model`` what makes its views right, or the rightest that could be found."""
    before = model.snapshot()
    runs = _runs(model, before, observed)
    if before.facts != Facts():
        # Something learnt in an earlier state may have been the wrong explanation.
        runs += _runs(model, model.blank(), observed)
    best, best_run = _NEVER, runs[0]
    for run in runs:
        result = run({})
        if not result:
            return
        if result < best:
            best, best_run = result, run
    chosen: Targets = {}
    trials = 0
    for alias, options in list(model.options.items()):
        for target in options[1:]:
            if trials == MAX_TRIALS:
                break
            trials += 1
            result = best_run({**chosen, alias: target})
            if not result:
                return
            if result < best:
                best, chosen = result, {**chosen, alias: target}
    best_run(chosen)


def _runs(model: Model, before: Snapshot, observed: Sequence[Observed]) -> list[Run]:
    return [
        _run(model, before, views, last_first)
        for last_first in (False, True)
        for views in (observed, observed[::-1])
    ]


def _run(
    model: Model, before: Snapshot, observed: Sequence[Observed], last_first: bool
) -> Run:
    def run(chosen: Targets) -> int:
        model.restore(before)
        for alias, target in chosen.items():
            model.set_target(alias, target)
        try:
            return Learner(model, observed, last_first=last_first).learn()
        except ProtocolError:
            return _NEVER  # the alias targets make a cycle

    return run
