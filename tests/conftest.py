"""Fixtures for the tests that run real QEMU."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

from qemuglue.qemu.builds import STANDARD_SUITES, Build, installed_builds

# No test judges by the clock: a loaded host is no defect.
settings.register_profile(
    "qemuglue", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("qemuglue")

# Looked up once and before any test changes the environment that says where the cache is.
INSTALLED = {build.name: build for build in installed_builds()}


def _wanted(name: str) -> Build:
    if name not in INSTALLED:
        pytest.skip(f"build {name} is not installed: `qemuglue builds install {name}` brings it")
    return INSTALLED[name]


@pytest.fixture(scope="session", params=STANDARD_SUITES)
def build(request: pytest.FixtureRequest) -> Build:
    """Each standard build in turn; skipped, with the reason, where it is not installed."""
    return _wanted(request.param)


@pytest.fixture(scope="session")
def newest_build() -> Build:
    """The newest installed build, for what need not be tried on every version."""
    if not INSTALLED:
        pytest.skip("no build is installed: `qemuglue builds install` brings one")
    return list(INSTALLED.values())[-1]
