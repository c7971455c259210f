"""A page on which a chain is looked at and changed: live, before a model, or as a file of precomputed changes."""
