"""Pause tokens, and letters to count: a method and a task for unspoken."""
