"""The generation engine that all methods share."""

from unspoken.reasoning.rollout import SilentReasoner, SpeakingReasoner, Speech, StopRule, Thought, respond, rollout

__all__ = ["SilentReasoner", "SpeakingReasoner", "Speech", "StopRule", "Thought", "respond", "rollout"]
