"""What is read of latents of tree search: by every probe of a Reasoner that searches, its Talker left out.

Axes: B problems, N latents of an answer, D latent width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from unspoken.probes.probe import View
from unspoken.reasoning.engine import RowTargets
from unspoken.reasoning.system import System
from unspoken.tasks import TreeProblems, TreeSearchTask
from unspoken.tasks.task import Task
from unspoken.tasks.tree_search import searches_trees

KINDS = {"forced": "teacher-forced", "rollout": "rollout"}


def reasons_in_trees(system: System, task: Task) -> bool:
    """Whether a system searches trees with a Reasoner alone."""
    return searches_trees(task) and system.targets is not None and not system.has_talker


@dataclass(frozen=True, kw_only=True)
class TreeLatents:
    """The latents of a system by how they came about, one for each token of an answer.

    Attributes:
        task, problems: what they answer.
        targets: the rows that they point at.
        rollout: of the system's own chains; zeros after a chain's end.
        forced: of the right answers.
        complete: chains with a latent for every name.
    """

    task: TreeSearchTask
    problems: TreeProblems
    targets: RowTargets
    rollout: Float[Tensor, "B N D"]
    forced: Float[Tensor, "B N D"]
    complete: Bool[Tensor, " B"]

    @property
    def kinds(self) -> dict[str, Tensor]:
        """Latents by kind."""
        return {"rollout": self.rollout, "forced": self.forced}


def tree_latents(view: View) -> TreeLatents:
    """The latents that a view has of tree search."""
    task, targets, chain = view.task, view.system.targets, view.graded.chain
    assert searches_trees(task) and targets is not None
    return TreeLatents(
        task=task,
        problems=cast(TreeProblems, view.problems),
        targets=targets,
        rollout=padded(chain.latents, task.answer_length),
        forced=view.forced.latents,
        complete=chain.lengths >= task.config.depth,
    )


def padded(latents: Float[Tensor, "B N D"], steps: int) -> Float[Tensor, "B M D"]:
    """At least so many latents, zeros after a chain's end."""
    return torch.nn.functional.pad(latents, (0, 0, 0, max(0, steps - latents.shape[1])))
