"""The model families that can be exported: one module each, found by its `FAMILY`, so that a new file is enough."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from pkgutil import iter_modules

from export.graph import Family


def _families() -> Iterator[Family]:
    for module in sorted(iter_modules(__path__), key=lambda module: module.name):
        family = getattr(import_module(f"{__name__}.{module.name}"), "FAMILY", None)
        if isinstance(family, Family):
            yield family


# By the name that a checkpoint gives its architecture.
FAMILIES: Mapping[str, Family] = {name: family for family in _families() for name in (family.name, *family.other_names)}
