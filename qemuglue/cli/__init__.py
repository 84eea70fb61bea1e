"""The nine rooms end here: one module a verb."""
