"""How good, how costly, how certain, and whether the chain does anything."""
