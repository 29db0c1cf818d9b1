"""Noise that is correlated between rounds: strategies, their sensitivity, their streams.

A strategy is a lower-triangular matrix C. Round t releases x_t + (C⁻¹z)_t, where x_t is the sum of
the round's updates and z is fresh noise. The released sequence is C⁻¹(Cx + z), so it costs what one
Gaussian release of Cx costs, and the noise of neighbouring rounds cancels in every prefix sum.
"""
