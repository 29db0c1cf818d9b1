"""Conformance vectors of the secure aggregation protocol: made, answered and compared."""
