"""A reader of printed tree-search problems that shares no code with the package."""

from __future__ import annotations

import re
from dataclasses import dataclass

PRINTED = re.compile(
    r"(?P<edges>[A-O]{2}(?:,[A-O]{2})*)\[ROOT\](?P<root>[A-O])\[TARGET\](?P<targets>[A-O]*)\[ROUTE\](?P<route>[A-O]*)"
)


@dataclass(frozen=True, kw_only=True)
class PrintedTree:
    """What a person reads off a printed problem."""

    edges: list[tuple[str, str]]
    root: str
    targets: str
    route: str

    @property
    def parents(self) -> dict[str, str]:
        """Child to parent."""
        return {child: parent for parent, child in self.edges}

    @property
    def leaves(self) -> set[str]:
        """Names that are nobody's parent."""
        return set(self.parents) - {parent for parent, _ in self.edges}

    @property
    def shape(self) -> frozenset[tuple[str, str]]:
        """The parent relation: what makes two trees the same tree."""
        return frozenset(self.edges)

    def walk(self, leaf: str) -> str:
        """The route to a leaf, by climbing parents."""
        route = leaf
        while route[0] != self.root:
            route = self.parents[route[0]] + route
        return route


def read_printed(text: str) -> PrintedTree:
    """Read a problem in the paper's form, or fail."""
    match = PRINTED.fullmatch(text)
    assert match is not None, text
    return PrintedTree(
        edges=[(edge[0], edge[1]) for edge in match["edges"].split(",")],
        root=match["root"],
        targets=match["targets"],
        route=match["route"],
    )
