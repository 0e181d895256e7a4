"""Finds plug-ins: a file put into a folder takes part, and there is no list to edit."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PlugIn = TypeVar("PlugIn")


def find_plug_ins(
    package: str, path: Iterable[str], member: str, kind: type[PlugIn]
) -> Iterator[PlugIn]:
    """Yield the plug-in of each module of a folder that has one.

    Args:
        package: the folder's dotted name, its `__name__`.
        path: the folder, its `__path__`.
        member: the name in a module under which a plug-in stands.
        kind: the class of the plug-ins; a module whose member is of another one has none.
    """
    for info in pkgutil.iter_modules(path):
        found = getattr(importlib.import_module(f"{package}.{info.name}"), member, None)
        if isinstance(found, kind):
            yield found
