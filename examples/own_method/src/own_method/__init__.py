"""Hesitation, letters to count, and how much hesitation an answer needs: a method, a task and a probe for unspoken."""
