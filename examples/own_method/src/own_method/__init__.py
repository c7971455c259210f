"""Pause tokens, letters to count, and how many pauses an answer needs: a method, a task and a probe for unspoken."""
