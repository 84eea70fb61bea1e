"""The naive oracle for the Rust face, under the names the tests use."""

from __future__ import annotations

from qemuglue.campaign.model.rust_face import Outcome, RustOracle, outcome_of, rust_map, told

__all__ = ["Outcome", "RustOracle", "outcome_of", "rust_map", "told"]
