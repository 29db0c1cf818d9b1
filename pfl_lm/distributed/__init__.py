"""Several processes on one run: rank 0 writes the run folder, every rank trains part of the cohort.

ranks       what the processes say to each other, and a process that runs alone
processes   the processes of one machine are started, watched, and started again
pipes       how the processes of one machine talk: inherited pipes, no port
torchrun    the processes of several machines, which torchrun starts
"""

from pfl_lm.distributed.ranks import ALONE, Ranks

__all__ = ["ALONE", "Ranks"]
