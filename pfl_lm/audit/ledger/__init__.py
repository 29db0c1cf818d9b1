"""Checks of a run's ledger against its artifacts."""
