"""A pytest plugin for the runs over mutants: Hypothesis the same every time, briefly, and without
shrinking, since only whether a test fails is asked."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, settings

#: Examples of a property, also of one that asks for more: a defect that a property can see at all
#: nearly always shows in the first few, and a survivor has to sit through every property.
EXAMPLES = 40

#: Where Hypothesis keeps a test's own settings; its pytest plugin looks there too.
_OWN = "_hypothesis_internal_use_settings"


def pytest_configure() -> None:
    settings.register_profile(
        "mutants", deadline=None, derandomize=True, database=None, max_examples=EXAMPLES,
        phases=(Phase.explicit, Phase.generate), report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    settings.load_profile("mutants")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        test = getattr(item, "obj", None)
        own = getattr(test, _OWN, None)
        if isinstance(own, settings) and own.max_examples > EXAMPLES:
            function = getattr(test, "__func__", test)
            setattr(function, _OWN, settings(own, max_examples=EXAMPLES))
