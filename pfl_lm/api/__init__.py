"""What programs and notebooks call: scenarios, runs, comparisons, suggestions."""
