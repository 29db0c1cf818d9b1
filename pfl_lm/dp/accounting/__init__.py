"""What rounds cost: ε of composed mechanisms, and the noise that a policy needs."""
