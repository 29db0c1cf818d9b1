"""The privacy officer's check of a run, or of a policy alone: what was promised, and was it kept?

    accounting  the guarantee, recomputed by libraries and theorems that the run did not use
      stated, policy_file         what was stated, read by the auditor's own rules
      round_groups, methods, libraries, renyi, opacus
                                  rounds that cost alike; every independent way to ε
      this_model                  what a run says of its own model, against its facts
      flags, tuning, checklist    what breaks guarantees in practice; what a report must state
      tables                      methods, adversaries, populations side by side
    ledger      the records, replayed by code that the run did not use
      replay                      what a recorded round cost
      clipping                    a clip norm that follows the updates, replayed
      ending                      the closing entry, checkpoints, rounds that released nothing
      published, known_records    figures, entries and values of known names alone
      told_rounds, public_copies  metrics against the ledger; public files against the auditor's
      report_page                 the run's page, written again and compared
    mechanism   statistical tests of the code that clips, rounds, adds noise and sums
      harness                     one round of the run's own code with chosen updates
      noise_tests, sum_tests, clipping_tests, adversarial
      records                     payloads drawn again; the model against the checkpoints
      stated_again                the manifest, by the code that is installed here
      rebuild                     the run's context from what the run wrote down
    attack      canaries in the run's own pipeline, with the noise off first
      canaries, attackers, one_shot, text_canaries
      estimators, scores          what guesses prove about ε (a bound), or suggest
    artifacts   a run folder as an auditor gets it
    chain       hashes and links of a ledger
    gaussians   (ε, δ) between two Gaussians
    findings, hazards, page       what was checked, found and not checked: text, JSON, HTML

Accounting and ledger never import torch, so that they run wherever Python and SciPy do.
"""
