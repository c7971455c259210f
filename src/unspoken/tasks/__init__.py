"""What a problem is. A task makes samples, tokenises them with named spans, and grades answers.

A recipe is read without torch and transformers: the modules below import them where they make tensors and tokenizers.
"""

from unspoken.tasks.arithmetic import ArithmeticConfig, ArithmeticTask
from unspoken.tasks.competition import CompetitionConfig, CompetitionTask
from unspoken.tasks.grade_school import GradeSchoolConfig, GradeSchoolTask
from unspoken.tasks.grammar import GrammarConfig, GrammarProblems, GrammarTask
from unspoken.tasks.jsonl import JsonlConfig, JsonlTask
from unspoken.tasks.logic import LogicConfig, LogicTask
from unspoken.tasks.prose import ProseConfig, ProseTask
from unspoken.tasks.tree_search import TreeProblems, TreeSearchConfig, TreeSearchTask

__all__ = [
    "ArithmeticConfig",
    "ArithmeticTask",
    "CompetitionConfig",
    "CompetitionTask",
    "GradeSchoolConfig",
    "GradeSchoolTask",
    "GrammarConfig",
    "GrammarProblems",
    "GrammarTask",
    "JsonlConfig",
    "JsonlTask",
    "LogicConfig",
    "LogicTask",
    "ProseConfig",
    "ProseTask",
    "TreeProblems",
    "TreeSearchConfig",
    "TreeSearchTask",
]
