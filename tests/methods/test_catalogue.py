"""Methods of other packages stand beside those of the library, and never take the place of one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from unspoken.methods import catalogue
from unspoken.methods.defaults import TrainingFacts
from unspoken.methods.method import Method, Objective
from unspoken.methods.reasoning import Reasoning


@dataclass(frozen=True, kw_only=True)
class Stage(Objective):
    kind: ClassVar[str] = "coconut"


@dataclass(frozen=True, kw_only=True)
class Way(Reasoning):
    kind: ClassVar[str] = "soft_thinking"


class SameKind(Method):
    name: ClassVar[str] = "other"
    objectives: ClassVar[tuple[type[Objective], ...]] = (Stage,)


class SameReasoning(Method):
    name: ClassVar[str] = "other"
    objectives: ClassVar[tuple[type[Objective], ...]] = ()
    reasonings: ClassVar[tuple[type[Reasoning], ...]] = (Way,)


class SameName(Method):
    name: ClassVar[str] = "other"
    objectives: ClassVar[tuple[type[Objective], ...]] = ()

    def default_stages(self, facts: TrainingFacts) -> dict[str, list[dict[str, Any]]]:
        return {"codi": []}


@pytest.fixture(autouse=True)
def _as_installed() -> Iterator[None]:
    catalogue.methods.cache_clear()
    yield
    catalogue.methods.cache_clear()


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (SameKind(), "it has the stage kind 'coconut' of another method"),
        (SameReasoning(), "it has the kind of reasoning 'soft_thinking' of another method"),
        (SameName(), "it has the name to train it by 'codi' of another method"),
        ("text", "it is no unspoken.methods.method.Method"),
    ],
    ids=["kind", "reasoning", "name", "class"],
)
def test_a_method_of_another_package_takes_no_name(monkeypatch: pytest.MonkeyPatch, method: Any, message: str) -> None:
    monkeypatch.setattr(catalogue, "offered", lambda _: [("it", method)])
    with pytest.raises(ValueError, match=f"^{message}.*; uninstall it$"):
        catalogue.methods()


def test_two_packages_may_not_have_the_same_name(monkeypatch: pytest.MonkeyPatch) -> None:
    class New(SameName):
        def default_stages(self, facts: TrainingFacts) -> dict[str, list[dict[str, Any]]]:
            return {"mine": []}

    monkeypatch.setattr(catalogue, "offered", lambda _: [("one", New())])
    assert "mine" in catalogue.trainable()
    catalogue.methods.cache_clear()
    monkeypatch.setattr(catalogue, "offered", lambda _: [("one", New()), ("two", New())])
    with pytest.raises(ValueError, match=r"^two has the name to train it by 'mine'"):
        catalogue.methods()
