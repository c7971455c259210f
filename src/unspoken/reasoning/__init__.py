"""The generation engine that all methods share."""

from unspoken.reasoning.rollout import SilentReasoner, StopRule, Thought, rollout

__all__ = ["SilentReasoner", "StopRule", "Thought", "rollout"]
