"""What is read of latents of tree search: by every probe of a Reasoner that searches, its Talker left out.

Axes: B problems, N latents of an answer, D latent width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from unspoken.tasks import TreeProblems, TreeSearchTask
from unspoken.tasks.tree_search import searches_trees

if TYPE_CHECKING:
    from torch import Tensor

    from unspoken.probes.probe import System, Task, View
    from unspoken.reasoning.engine import RowTargets

KINDS = {"forced": "teacher-forced", "rollout": "rollout"}


def reasons_in_trees(system: System, task: Task) -> bool:
    """Whether a system searches trees with a Reasoner alone."""
    return searches_trees(task) and system.targets is not None and not system.has_talker


@dataclass(frozen=True, kw_only=True)
class TreeLatents:
    """The latents of a system by how they came about, one for each token of an answer."""

    # task, problems: what they answer
    task: TreeSearchTask
    problems: TreeProblems
    targets: RowTargets  # the rows that they point at
    rollout: Tensor  # of the system's own chains ``[B, N, D]``; zeros after a chain's end
    forced: Tensor  # of the right answers ``[B, N, D]``
    complete: Tensor  # chains with a latent for every name ``[B]``

    @property
    def kinds(self) -> dict[str, Tensor]:
        """Latents by kind."""
        return {"rollout": self.rollout, "forced": self.forced}


def tree_latents(view: View) -> TreeLatents:
    """The latents that a view has of tree search."""
    from torch.nn.functional import pad

    task, targets, chain = view.task, view.system.targets, view.graded.chain
    assert searches_trees(task) and targets is not None
    missing = max(0, task.answer_length - chain.latents.shape[1])
    return TreeLatents(
        task=task,
        problems=cast(TreeProblems, view.problems),
        targets=targets,
        rollout=pad(chain.latents, (0, 0, 0, missing)),
        forced=view.forced.latents,
        complete=chain.lengths >= task.config.depth,
    )
