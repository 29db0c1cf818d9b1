"""Many runs of one scenario: every combination of some settings, several seeds, one page."""
