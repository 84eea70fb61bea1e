"""The naive oracle for the rest of the C face, under the name the tests use."""

from __future__ import annotations

from qemuglue.campaign.model.c_face import COracle

__all__ = ["COracle"]
