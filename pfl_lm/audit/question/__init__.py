"""The audit of a question to phones: its ε, its ledger, and the code that asked it."""
