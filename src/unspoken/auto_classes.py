"""The auto classes of transformers learn of our models when they first meet a kind of model that they do not know.

``import unspoken`` must stay quick, so it registers nothing. It gives the table of configurations of
transformers a dictionary for added kinds, which asks every method to register its models as soon as a kind is missing
in the table and in the dictionary. By then all modules are imported, so nothing is imported in a circle, as it would be
by a hook that registers while transformers is being imported.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MODULE = "transformers.models.auto.configuration_auto"


class _Added(dict[str, Any]):
    """Configurations that transformers does not have itself, by the name of their kind."""

    def __init__(self, known: Any, added: dict[str, Any]) -> None:
        super().__init__(added)
        self._known, self._asked = known, False

    def __contains__(self, kind: object) -> bool:
        if not super().__contains__(kind) and kind not in self._known and not self._asked:
            self._asked = True
            from unspoken.methods.catalogue import register_models

            register_models()
        return super().__contains__(kind)


class _Finder(MetaPathFinder):
    """Intercepts the import of the table of configurations of transformers, once."""

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        """The module of transformers, after which `_extend` runs."""
        if fullname != MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        assert spec is not None and spec.loader is not None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            _extend(module)

        setattr(spec.loader, "exec_module", exec_module)  # noqa: B010
        return spec


def _extend(module: Any) -> None:
    mapping = module.CONFIG_MAPPING
    mapping._extra_content = _Added(mapping._mapping, mapping._extra_content)


def extend_auto_classes() -> None:
    """Let the auto classes load our folders: now if transformers is imported, otherwise once it is."""
    if MODULE in sys.modules:
        _extend(sys.modules[MODULE])
    else:
        sys.meta_path.insert(0, _Finder())
