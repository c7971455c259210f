"""What a notebook calls, and what the command line calls too: one function for each job."""

from __future__ import annotations

from unspoken.runs import open_system as load

__all__ = ["load"]
