"""The privacy officer's check of a run, or of a policy alone: what was promised, and was it kept?

    accounting  the guarantee, recomputed by libraries and theorems that the run did not use
      promise, policy_file     what is claimed, read by the auditor's own rules
      phases, methods, renyi   rounds that cost alike; every independent way to ε
      flags, tuning, checklist what breaks guarantees in practice; what a report must state
    ledger      the chain of records, verified and replayed by code that the run did not use
      chain, replay            hashes and links; what a recorded round cost
    mechanism   statistical tests of the code that clips, rounds, adds noise and sums
      probe, noise_tests, sum_tests
    attack      canaries in the run's own pipeline, with the noise off first
      canaries, views, one_shot, secrets
      estimators, scores, gaussians   what guesses prove about ε (a bound), or suggest
    page        what was checked, found and not checked: text, JSON, HTML; dangers by name

Accounting and ledger never import torch, so that they run wherever Python and SciPy do.
"""
