"""The ledger of the field's claims: each with the experiment that decides it, and a rule that was there first."""
