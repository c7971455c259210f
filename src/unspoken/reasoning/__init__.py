"""The generation engine that all methods share."""
