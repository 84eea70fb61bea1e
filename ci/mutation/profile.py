"""A pytest plugin for the runs over mutants: Hypothesis the same every time, and without
shrinking, since only whether a test fails is asked."""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, settings

#: Examples of a property that asks for no number itself.
EXAMPLES = 60


def pytest_configure() -> None:
    settings.register_profile(
        "mutants", deadline=None, derandomize=True, database=None, max_examples=EXAMPLES,
        phases=(Phase.explicit, Phase.generate), report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    settings.load_profile("mutants")
