"""What a problem is. A task makes samples, tokenises them with named spans, and grades answers."""

from unspoken.tasks.arithmetic import ArithmeticConfig, ArithmeticTask
from unspoken.tasks.dataset import GeneratedDataset
from unspoken.tasks.grade_school import GradeSchoolConfig, GradeSchoolTask
from unspoken.tasks.tree_search import TreeProblems, TreeSearchConfig, TreeSearchTask

__all__ = [
    "ArithmeticConfig",
    "ArithmeticTask",
    "GeneratedDataset",
    "GradeSchoolConfig",
    "GradeSchoolTask",
    "TreeProblems",
    "TreeSearchConfig",
    "TreeSearchTask",
]
