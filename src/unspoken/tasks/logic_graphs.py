"""Directed graphs without cycles for questions about who is a kind of what, and the shortest ways through them.

Even graphs are ours: nothing but the path distinguishes the two options. Graphs like those of ProsQA are built as its
paper describes (Hao et al., arXiv 2412.06769, appendix A): each new node gets a random number of parents among the
nodes that one of the two people reaches, or among all, deeper ones more often. Where its code is not published, the
choices are ours, so that the graphs have the statistics of the published questions (docs/log.md).
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import permutations
from math import exp, factorial
from random import Random
from typing import NamedTuple, TypeVar

from unspoken.tasks.task import split_of

Node = TypeVar("Node", int, str)  # of a graph that is made, or that is read

_SPLIT_CLASSES = 8  # six for training, one for validation, one for test
_SHARED = 0.2  # of the concepts beside the lines, those that both people may reach
_MORE_PARENTS = 2  # that an option has beside the end of its line, at most

# Of graphs like those of ProsQA:
_NODES = 28  # before those that nothing joins are dropped, about five
_PARENTS = [exp(-1.5) * 1.5**count / factorial(count) for count in range(10)]  # Poisson, mean 1.5
_ONE_SIDED = 0.4  # of the nodes, those that get their parents from what one person alone reaches; as many for the other
_FEWEST_STEPS = 3  # to the answer


class Graph(NamedTuple):
    """Who is a kind of what, by number: the people come first, the others are concepts."""

    pairs: list[tuple[int, int]]
    options: tuple[int, int]  # what person 0 is, and what person 1 is
    people: int = 2


def even_graph(random: Random, hops: int, concepts: int, edges: int) -> Graph:
    """A graph in which each option is exactly ``hops`` steps from its person, and out of reach of the other.

    Every concept has a level, one more than that of its first parent; further parents have at least the level of the
    first, so no path is shorter than the level. It also has the set of people who may reach it, as bits; its parents
    are reached by nobody else.
    """
    level, reach = [0, 0], [0b01, 0b10]
    pairs: list[tuple[int, int]] = []
    ends = [0, 1]  # of the two lines, so far
    lines: list[int | None] = [0, 1] * hops + [None] * (concepts - 2 * hops)
    random.shuffle(lines)
    for new, line in enumerate(lines, start=2):
        if line is None:
            old = random.choice([node for node in range(new) if level[node] < hops or node not in ends])
            reach.append(0b11 if random.random() < _SHARED else reach[old])
        else:
            old, ends[line] = ends[line], new
            reach.append(reach[old])
        level.append(level[old] + 1)
        pairs.append((old, new))

    inner = [node for node in range(len(level)) if node not in ends]
    made = set(pairs)
    option_parents = [
        [(old, end) for old in inner if reach[old] == reach[end] and level[old] >= hops - 1 and (old, end) not in made]
        for end in ends
    ]
    left = edges - len(pairs)
    more = random.randint(0, min(_MORE_PARENTS, left // 2, *map(len, option_parents)))  # the same for both options
    for joints in option_parents:
        pairs += random.sample(joints, more)
    joints = [
        (old, new)
        for new in inner[2:]
        for old in inner
        if old < new and level[new] <= level[old] + 1 and reach[old] | reach[new] == reach[new]
        if (old, new) not in made
    ]
    pairs += random.sample(joints, min(len(joints), left - 2 * more))
    return Graph(pairs, (ends[0], ends[1]))


def graph_like_prosqa(random: Random) -> Graph:
    """A graph like those of ProsQA: 14 to 28 nodes, 36 sentences on average, and people whom nobody asks about.

    Person 0 is asked about. The answer is the concept without children that is most steps away from one of the first
    two people and out of reach of the other, at least three steps; the other option is any concept without children
    that the other one alone reaches. It is thus as near as the answer or nearer.
    """
    while True:
        pairs = _joined(random)
        away = [steps_away(pairs, person) for person in (0, 1)]
        ends = {new for _, new in pairs} - {old for old, _ in pairs}
        own = [{end: away[one][end] for end in sorted(ends & (away[one].keys() - away[1 - one]))} for one in (0, 1)]
        farthest = [max(steps.values(), default=0) for steps in own]
        if min(farthest) and max(farthest) >= _FEWEST_STEPS:
            break
    asked = random.choice([one for one in (0, 1) if farthest[one] == max(farthest)])
    answer = random.choice([end for end, steps in own[asked].items() if steps == farthest[asked]])
    wrong = random.choice([*own[1 - asked]])

    children = {new for _, new in pairs}
    people = [asked, 1 - asked, *sorted({old for old, _ in pairs} - children - {0, 1})]
    number = {node: index for index, node in enumerate([*people, *sorted(children)])}
    return Graph([(number[old], number[new]) for old, new in pairs], (number[answer], number[wrong]), len(people))


def _joined(random: Random) -> list[tuple[int, int]]:
    """The pairs of a graph like those of ProsQA, whose nodes without parents are its people."""
    reach, depth = [0b01, 0b10], [0, 0]
    pairs: list[tuple[int, int]] = []
    for new in range(2, _NODES):
        (count,) = random.choices(range(len(_PARENTS)), _PARENTS)
        (of,) = random.choices((0b01, 0b10, None), (_ONE_SIDED, _ONE_SIDED, 1 - 2 * _ONE_SIDED))
        possible = [node for node in range(new) if of is None or reach[node] == of]
        parents: list[int] = []
        while possible and len(parents) < count:
            (old,) = random.choices(possible, [1.5 * depth[node] + 1 for node in possible])
            possible.remove(old)
            parents.append(old)
        pairs += [(old, new) for old in parents]
        reach.append(0)
        for old in parents:
            reach[new] |= reach[old]
        depth.append(max((depth[old] + 1 for old in parents), default=0))
    return pairs


def split_of_question(pairs: Sequence[tuple[Node, Node]], options: Sequence[Node]) -> str:
    """The split of a question: a hash of the ancestors of each node, blind to names and to which person is which."""
    parents: dict[Node, list[Node]] = defaultdict(list)
    for old, new in pairs:
        parents[new].append(old)

    marks: dict[Node, str] = {}

    def mark(node: Node) -> str:
        if node not in marks:
            kind = "option" if node in options else "concept" if node in parents else "person"
            marks[node] = _digest(kind, *sorted(mark(parent) for parent in parents.get(node, ())))
        return marks[node]

    nodes = {node for pair in pairs for node in pair}
    return split_of(int(_digest(*sorted(map(mark, nodes))), 16), _SPLIT_CLASSES)


def _digest(*texts: str) -> str:
    return hashlib.blake2b(" ".join(texts).encode(), digest_size=8).hexdigest()


def even_questions(pairs: Sequence[tuple[str, str]]) -> dict[int, list[tuple[str, str, str]]]:
    """By numbers of steps: a person, what only this one is so far away, and what only the other one is as far away."""
    people = sorted({old for old, _ in pairs if old[0].isupper()})
    away = {person: steps_away(pairs, person) for person in people}
    possible: dict[int, list[tuple[str, str, str]]] = defaultdict(list)
    for person, other in permutations(people, 2):
        own = [(name, steps) for name, steps in away[person].items() if name not in away[other]]
        for wrong, steps in away[other].items():
            if wrong not in away[person]:
                possible[steps] += [(person, right, wrong) for right, others in own if others == steps]
    return {steps: questions for steps, questions in possible.items() if questions}


def steps_away(pairs: Sequence[tuple[Node, Node]], start: Node) -> dict[Node, int]:
    """The fewest steps, at least one, from a person to each concept."""
    # Ordered, since the order of sets of texts is another in every process, and questions are drawn from these.
    away, ring = dict[Node, int](), dict.fromkeys([start])
    for steps in range(1, len(pairs) + 1):
        ring = dict.fromkeys(new for old, new in pairs if old in ring and new not in away)
        away |= dict.fromkeys(ring, steps)
    return away


def shortest_paths(pairs: Sequence[tuple[str, str]], start: str, goal: str) -> Iterator[tuple[str, ...]]:
    """All shortest paths, those first that take the earlier sentences; none if there is no path."""
    after: dict[str, dict[str, None]] = defaultdict(dict)  # ordered, and each once
    before: dict[str, list[str]] = defaultdict(list)
    for old, new in pairs:
        after[old][new] = None
        before[new].append(old)
    away = {goal: 0}
    queue = [goal]
    for name in queue:
        for old in before[name]:
            if old not in away:
                away[old] = away[name] + 1
                queue.append(old)

    def walk(way: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        here = way[-1]
        if here == goal:
            yield way
            return
        for new in after[here]:
            if new in away and away[new] == away[here] - 1:
                yield from walk((*way, new))

    if start in away:
        yield from walk((start,))
