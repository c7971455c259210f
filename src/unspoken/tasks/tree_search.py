"""Route finding in a random binary tree (JEPA-Reasoner, section 5.1).

A problem prints every edge of a complete binary tree, its root and a leaf; the answer is the route from root to leaf::

    LK,LC,KB,KN,CJ,CE[ROOT]L[TARGET]E[ROUTE]LCE

Sample i is a pure function of (config, seed, split, i): random numbers are hashes of a counter, so a batch of any
indices is made at once, and shuffling, sharding and resuming need no state. A tree belongs to exactly one split, by a
hash of its parent relation (the order of edges and children does not enter), so splits are disjoint by construction.

Beyond the paper, ``targets`` other than 1 makes the route ambiguous with a known posterior: several leaves are listed
(one that is listed twice is twice as likely), or none (every leaf is equally likely).

Axes: B problems, M nodes in heap order (children of m are 2m+1 and 2m+2), E edges, T tokens, A listed targets.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, TypeGuard

import numpy as np
from numpy.typing import NDArray

from unspoken.ranges import require_value
from unspoken.tasks.spans import Spans
from unspoken.tasks.task import Array, Indices, SymbolTask, Traits, check_split
from unspoken.tasks.tokenizing import by_character

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerFast

    from unspoken.tasks.prompt_format import PromptFormat

PAD, EOS, ROOT, TARGET, ROUTE, COMMA = range(6)
MARKERS = ("[PAD]", "[EOS]", "[ROOT]", "[TARGET]", "[ROUTE]", ",")
LETTERS = "ABCDEFGHIJKLMNO"  # the fifteen names that the paper's example and figure show
FIRST_LETTER = len(MARKERS)
_SPLIT_CLASSES = 16  # fourteen for training, one for validation, one for test


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser: a bijection of 64-bit integers that spreads every bit (Steele et al., 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@dataclass(frozen=True, kw_only=True)
class TreeSearchConfig:
    """What a tree-search problem looks like."""

    kind: ClassVar[str] = "tree_search"

    depth: int = 4  # levels of the complete tree, 2 to 4; 4 is the paper's
    shuffle_edges: bool = False  # print the edges in random order instead of level by level
    targets: int = 1  # leaves listed after the target marker; 1 is the paper's task, 0 leaves the target unnamed
    repeat_targets: bool = True  # the same leaf may be listed several times, which weights it
    # Fraction of the problems in which one leaf is listed ``targets`` times. They are not ambiguous, and a model learns
    # the search from them much sooner.
    certain: float = 0.0

    def __post_init__(self) -> None:
        if not 2 <= self.depth <= 4:
            raise ValueError(f"depth is {self.depth}; fifteen node names allow complete trees of 2 to 4 levels")
        leaves = 2 ** (self.depth - 1)
        if self.targets < 0:
            raise ValueError(f"targets is {self.targets}; it cannot be negative")
        if self.targets > leaves:
            raise ValueError(f"targets is {self.targets}, but a tree of depth {self.depth} has {leaves} leaves")
        require_value(self, "certain", lambda value: 0 <= value <= 1, "a fraction from 0 to 1")
        if self.certain and not self.repeat_targets:
            raise ValueError(
                f"certain is {self.certain}, but repeat_targets is false; set certain to 0, or repeat_targets to true"
            )

    @property
    def traits(self) -> Traits:
        """The route is the chain and the answer; several targets leave it open."""
        task = self.build()
        return Traits(
            own_vocabulary=True,
            has_chain=False,
            has_lengths=False,
            selected_by="exact_match" if self.targets == 1 else "loss",
            # Twice the longest right answer, so that a chain that does not stop in time is seen.
            chain_cap=2 * task.answer_length,
            answer_cap=2 * task.answer_length,
            row_tokens=(task.prompt_length, task.answer_length),
            # Every leaf of a tree, where the prompt ends with the one that is asked for.
            questions=task.nodes - task.first_leaf if self.targets == 1 else 1,
        )

    def build(self) -> TreeSearchTask:
        return TreeSearchTask(self)


@dataclass(frozen=True, kw_only=True)
class TreeProblems:
    """A batch of problems."""

    names_BM: Array  # token ids of the node names in heap order
    targets_BA: Array  # heap indices of the listed leaves
    leaf_B: Array  # heap index of the leaf that the route leads to
    edges_BE: Array  # heap index of the child of each printed edge, in printing order

    def __len__(self) -> int:
        return len(self.leaf_B)

    def select(self, rows: Indices) -> TreeProblems:
        chosen = np.asarray(rows, dtype=np.int64)
        return TreeProblems(**{name: values[chosen] for name, values in vars(self).items()})


class TreeSearchTask(SymbolTask):
    """Makes, prints, draws and grades tree-search problems."""

    def __init__(self, config: TreeSearchConfig) -> None:
        self.config = config
        self.nodes = 2**config.depth - 1
        self.first_leaf = 2 ** (config.depth - 1) - 1

    @property
    def answer_length(self) -> int:
        """Tokens of an answer: one name per level, then end-of-sequence."""
        return self.config.depth + 1

    @property
    def prompt_length(self) -> int:
        """Tokens before the route."""
        return 3 * (self.nodes - 1) - 1 + 4 + self.config.targets

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """One token per character and marker, 21 in all."""
        return by_character((*MARKERS, *LETTERS))

    # --- making ------------------------------------------------------------------------------------------------

    def sample(self, split: str, indices: Indices, seed: int = 0) -> TreeProblems:
        check_split(split)
        indices = np.asarray(indices, dtype=np.int64)
        names_BM = np.empty((len(indices), self.nodes), dtype=np.int64)
        attempt_B = np.zeros(len(indices), dtype=np.int64)
        pending = np.arange(len(indices))
        # Draw until the tree falls in the split; the number of draws is itself a function of the index.
        while len(pending):
            noise = self._noise(split, indices[pending], seed, attempt_B[pending], columns=len(LETTERS), stream=0)
            names = np.argsort(noise, axis=1)[:, : self.nodes] + FIRST_LETTER
            belongs = self._splits_of(names, split)
            names_BM[pending[belongs]] = names[belongs]
            pending = pending[~belongs]
            attempt_B[pending] += 1
        leaves = self.nodes - self.first_leaf
        noise = self._noise(split, indices, seed, attempt_B, columns=2 * leaves + self.nodes - 1, stream=1)
        listed = max(self.config.targets, 1)
        if self.config.repeat_targets:
            targets_BA = (noise[:, :listed] % np.uint64(leaves)).astype(np.int64)
        else:
            targets_BA = np.argsort(noise[:, :leaves], axis=1)[:, :listed].astype(np.int64)
        # Problems that are certain are there to learn from; the test asks for none.
        certain = 0.0 if split == "test" else self.config.certain
        certain_B = noise[:, leaves + 1] / 2.0**64 < certain
        targets_BA[certain_B] = targets_BA[certain_B, :1]
        chosen_B = (noise[:, leaves] % np.uint64(listed)).astype(np.int64)
        leaf_B = self.first_leaf + np.take_along_axis(targets_BA, chosen_B[:, None], axis=1)[:, 0]
        edges_BE = np.tile(np.arange(1, self.nodes), (len(indices), 1))
        if self.config.shuffle_edges:
            edges_BE = 1 + np.argsort(noise[:, 2 * leaves :], axis=1)
        return TreeProblems(
            names_BM=names_BM,
            targets_BA=self.first_leaf + targets_BA[:, : self.config.targets],
            leaf_B=leaf_B,
            edges_BE=edges_BE,
        )

    @staticmethod
    def _noise(
        split: str, index_B: Array, seed: int, attempt_B: Array, *, columns: int, stream: int
    ) -> NDArray[np.uint64]:
        """Uniform 64-bit integers ``[B, columns]``: a hash of the counter and nothing else."""
        key = int.from_bytes(hashlib.sha256(f"{seed}:{split}:{stream}".encode()).digest()[:8], "little")
        with np.errstate(over="ignore"):
            row = _mix(np.uint64(key) + index_B.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
            row = _mix(row + attempt_B.astype(np.uint64) * np.uint64(0xD1B54A32D192ED03))
            column = (np.arange(columns, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x8CB92BA72F3D8DD7)
            return _mix(row[:, None] + column[None])

    def tree_hash(self, names_BM: Array) -> NDArray[np.uint64]:
        """A hash ``[B]`` of each tree's parent relation, blind to the order of edges, of children and to the target."""
        parents = (np.arange(self.nodes) - 1) // 2
        parent_names = np.where(np.arange(self.nodes) == 0, 0, names_BM[:, np.maximum(parents, 0)])
        with np.errstate(over="ignore"):
            # A sum over edges does not depend on their order.
            edges = _mix((names_BM * 64 + parent_names).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
            return _mix(edges.sum(axis=1, dtype=np.uint64))

    def _splits_of(self, names_BM: Array, split: str) -> NDArray[np.bool_]:
        class_B = (self.tree_hash(names_BM) % np.uint64(_SPLIT_CLASSES)).astype(np.int64)
        if split == "train":
            return class_B < _SPLIT_CLASSES - 2
        return class_B == _SPLIT_CLASSES - (2 if split == "validation" else 1)

    # --- printing ----------------------------------------------------------------------------------------------

    def route_nodes(self, leaf_B: Array) -> Array:
        """Heap indices ``[B, depth]`` of the nodes from the root to each leaf."""
        up = [leaf_B]
        for _ in range(self.config.depth - 1):
            up.append((up[-1] - 1) // 2)
        return np.stack(up[::-1], axis=1)

    def rows(
        self, problems: TreeProblems, prompt_format: PromptFormat | None = None, *, chain: bool = True
    ) -> dict[str, Tensor]:
        """Problems with their routes ``[B, T]``, all of one length; the answer is the route and end-of-sequence."""
        import torch

        assert chain, "tree search has no chain to leave out"
        names = problems.names_BM
        rows = len(problems)
        pairs = np.full((rows, problems.edges_BE.shape[1], 3), COMMA, dtype=np.int64)
        pairs[:, :, 0] = np.take_along_axis(names, (problems.edges_BE - 1) // 2, axis=1)
        pairs[:, :, 1] = np.take_along_axis(names, problems.edges_BE, axis=1)

        def column(token: int) -> Array:
            return np.full((rows, 1), token, dtype=np.int64)

        ids = np.concatenate(
            [
                pairs.reshape(rows, -1)[:, :-1],
                column(ROOT),
                names[:, :1],
                column(TARGET),
                np.take_along_axis(names, problems.targets_BA, axis=1),
                column(ROUTE),
                np.take_along_axis(names, self.route_nodes(problems.leaf_B), axis=1),
                column(EOS),
            ],
            axis=1,
        )
        answer = torch.zeros(ids.shape, dtype=torch.bool)
        answer[:, self.prompt_length :] = True
        return {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.ones(ids.shape, dtype=torch.long),
            "answer_mask": answer,
        }

    def spans(self, problems: TreeProblems, prompt_format: PromptFormat | None = None) -> list[Spans]:
        """The tokens of each problem: no steps, since the route is the answer."""
        rows, prompt = self.rows(problems)["input_ids"].tolist(), self.prompt_length
        return [Spans(prompt=tuple(row[:prompt]), steps=(), answer=tuple(row[prompt:])) for row in rows]

    def prompts(self, problems: TreeProblems, prompt_format: PromptFormat | None = None) -> tuple[Tensor, Tensor]:
        """Token ids ``[B, prompt_length]`` up to the route marker, and a mask of ones."""
        rows = self.rows(problems)
        return rows["input_ids"][:, : self.prompt_length], rows["attention_mask"][:, : self.prompt_length]

    def question_rows(self, problems: TreeProblems, questions: int) -> dict[str, Tensor]:
        """Rows of one tree and several routes: to the problem's own leaf and to those that follow it in the tree."""
        import torch

        leaves, shared = self.nodes - self.first_leaf, self.prompt_length - 2
        encoded = []
        for shift in range(questions):
            leaf_B = self.first_leaf + (problems.leaf_B - self.first_leaf + shift) % leaves
            encoded.append(self.rows(replace(problems, targets_BA=leaf_B[:, None], leaf_B=leaf_B)))

        def joined(rows: list[Tensor]) -> Tensor:
            return torch.cat([rows[0][:, :shared], *(other[:, shared:] for other in rows)], dim=1)

        rows = {name: joined([one[name] for one in encoded]) for name in encoded[0]}
        positions = torch.arange(encoded[0]["input_ids"].shape[1]).expand(encoded[0]["input_ids"].shape)
        numbers = [torch.where(positions < shared, 0, number) for number in range(1, questions + 1)]
        return {**rows, "question": joined(numbers), "position_ids": joined([positions] * questions)}

    def questions(self, problems: TreeProblems) -> list[str]:
        """The problems as printed, up to the route marker."""
        marker = MARKERS[ROUTE]
        return [text.partition(marker)[0] + marker for text in self.text(problems)]

    def text(self, problems: TreeProblems) -> list[str]:
        """The problems as printed, answers included and end-of-sequence left out."""
        ids = self.rows(problems)["input_ids"][:, :-1]
        return ["".join(self.tokenizer.convert_ids_to_tokens(row.tolist())) for row in ids]

    def words(self, answer_N: Tensor) -> list[str]:
        """The tokens of one answer up to its end-of-sequence, which is left out."""
        ids = answer_N.tolist()
        return self.tokenizer.convert_ids_to_tokens(ids[: ids.index(EOS)] if EOS in ids else ids)

    def parse(self, text: str) -> TreeProblems:
        """Read a problem typed by a person, which ends with the route marker.

        Raises:
            ValueError: it is no problem of this task, or goes on after the marker, where the answer will stand.
        """
        pattern = r"(?P<edges>[^\[]*)\[ROOT\](?P<root>[^\[]*)\[TARGET\](?P<targets>[^\[]*)\[ROUTE\](?P<rest>.*)"
        match = re.fullmatch(pattern, text.strip())
        if match is None:
            raise ValueError(
                f"not a tree-search problem: {text!r}; expected edges[ROOT]name[TARGET]leaf[ROUTE], "
                f"for instance {self.questions(self.sample('test', np.array([0])))[0]!r}"
            )
        if match["rest"]:
            raise ValueError(f"after [ROUTE] stands {match['rest']!r}, which the model is to find; leave it out")
        edges, listed = match["edges"].split(","), match["targets"]
        heap = self._heap(edges, match["root"])
        twice = not self.config.repeat_targets and len(set(listed)) < len(listed)
        if len(listed) != self.config.targets or twice or any(name not in heap[self.first_leaf :] for name in listed):
            different = "" if self.config.repeat_targets else "different "
            raise ValueError(f"target {listed!r} is not {self.config.targets} {different}leaf name(s) of this tree")
        targets = np.array([[heap.index(name) for name in listed]], dtype=np.int64).reshape(1, -1)
        leaf = targets[:, 0] if listed else np.array([self.first_leaf])
        return TreeProblems(
            names_BM=np.array([[FIRST_LETTER + LETTERS.index(name) for name in heap]]),
            targets_BA=targets,
            leaf_B=leaf,
            edges_BE=np.array([[heap.index(edge[1]) for edge in edges]]),
        )

    def _heap(self, edges: Sequence[str], root: str) -> list[str]:
        """Names of the nodes in heap order; a ValueError if the edges are no complete binary tree of this depth."""
        children: dict[str, list[str]] = {}
        for edge in edges:
            if len(edge) != 2 or any(name not in LETTERS for name in edge):
                raise ValueError(f"edge {edge!r} is not a pair of names out of {LETTERS}")
            children.setdefault(edge[0], []).append(edge[1])
        heap, unread = [root], dict(children)
        for parent in heap:
            heap.extend(unread.pop(parent, []))
        if len(set(heap)) != self.nodes or len(edges) != self.nodes - 1:
            raise ValueError(
                f"the edges are not a complete binary tree of {self.nodes} nodes below root {root!r}, "
                "which is what this model was trained on"
            )
        for parent in heap[: self.first_leaf]:
            if len(children.get(parent, [])) != 2:
                raise ValueError(f"node {parent!r} has {len(children.get(parent, []))} children; inner nodes have two")
        return heap

    def draw(self, problems: TreeProblems, row: int = 0) -> str:
        """The tree of one problem for humans: a level a line, the route in brackets."""
        names = [LETTERS[token - FIRST_LETTER] for token in problems.names_BM[row]]
        route = set(self.route_nodes(problems.leaf_B)[row].tolist()) if self.config.targets == 1 else set()
        lines = []
        width = 4 * (self.nodes - self.first_leaf)
        for level in range(self.config.depth):
            nodes = range(2**level - 1, 2 ** (level + 1) - 1)
            cell = width // len(nodes)
            shown = [f"[{names[node]}]" if node in route else f" {names[node]} " for node in nodes]
            lines.append("".join(name.center(cell) for name in shown).rstrip())
            if level < self.config.depth - 1:
                below = cell // 4
                arm = " " * below + "┌" + "─" * (below - 1) + "┴" + "─" * (below - 1) + "┐"
                lines.append("".join(arm.ljust(cell) for _ in nodes).rstrip())
        return "\n".join(lines)

    # --- grading -----------------------------------------------------------------------------------------------

    def answers(self, problems: TreeProblems) -> Tensor:
        """Right answers ``[B, depth + 1]``: the route and end-of-sequence."""
        return self.rows(problems)["input_ids"][:, self.prompt_length :]

    # --- what is known about the answer ------------------------------------------------------------------------

    def marginals(self, problems: TreeProblems) -> NDArray[np.float64]:
        """Probability ``[B, M]`` that each node lies on the route, given the prompt alone."""
        mass = np.zeros((len(problems), self.nodes))
        if self.config.targets == 0:
            mass[:, self.first_leaf :] = 1 / (self.nodes - self.first_leaf)
        else:
            for column in problems.targets_BA.T:
                mass[np.arange(len(problems)), column] += 1 / self.config.targets
        for node in range(self.first_leaf - 1, -1, -1):
            mass[:, node] = mass[:, 2 * node + 1] + mass[:, 2 * node + 2]
        return mass


def searches_trees(task: object) -> TypeGuard[TreeSearchTask]:
    """Whether a task is this one, the only one whose latents have known mixtures."""
    return isinstance(task, TreeSearchTask)
