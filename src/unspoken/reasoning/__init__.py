"""The generation engine that all methods share."""

from unspoken.reasoning.rollout import (
    Disturbance,
    SilentReasoner,
    SpeakingReasoner,
    Speech,
    StopRule,
    Thought,
    respond,
    rollout,
)

__all__ = ["Disturbance", "SilentReasoner", "SpeakingReasoner", "Speech", "StopRule", "Thought", "respond", "rollout"]
