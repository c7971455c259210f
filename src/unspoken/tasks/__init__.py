"""What a problem is. A task makes samples, tokenises them with named spans, and grades answers."""

from unspoken.tasks.dataset import GeneratedDataset
from unspoken.tasks.tree_search import TreeProblems, TreeSearchConfig, TreeSearchTask

TASKS = {TreeSearchConfig.kind: TreeSearchConfig}

__all__ = ["TASKS", "GeneratedDataset", "TreeProblems", "TreeSearchConfig", "TreeSearchTask"]
