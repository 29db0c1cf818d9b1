"""The privacy officer's check of a run: accounting, ledger, mechanism and attack.

    estimators  what an attacker's guesses prove about ε (a bound), or suggest (an estimate)
    scores      from canaries' scores to guesses; the choice of the threshold is paid for
    gaussians   (ε, δ) between two Gaussians; the one-shot estimate
    accounting  the guarantee, recomputed by libraries that the run did not use
    ledger      the chain of records, verified and replayed by code that the run did not use
    mechanism   statistical tests of the code that clips, rounds, adds noise and sums
    attack      canaries in the run's own pipeline
    page        what was checked, what was found, what was not checked: text, JSON, HTML

Accounting and ledger never import torch, so that they run wherever Python and SciPy do.
"""
