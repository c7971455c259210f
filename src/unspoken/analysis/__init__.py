"""Measures computed from latents."""
