"""Captures that all tests of a run share: a graph is made once for a network and its inputs.

A capture takes seconds, and most tests want the graph of a network that another test has captured.
`install` puts a shared folder behind `trace.capture`. An entry is named by everything that decides
the graph, so a test never gets the graph of another network. A network without weights has an entry
of its own, so that test_blank.py can compare both. Where the key cannot say what decides, the
capture is made anew and is not kept:

- a module that the capture runs through has another function than at the start of the test;
- the network has a hook, a patched method or an attribute of an unknown kind;
- the test has the marker `own_captures`, because capturing is what it is about;
- the run has the option --own-captures.
"""

from __future__ import annotations

import fcntl
import hashlib
import inspect
import os
import sys
import tempfile
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import dataclass, field
from functools import wraps
from importlib import import_module, metadata
from pathlib import Path
from pkgutil import walk_packages
from types import CodeType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

import lora_export
from whole_run.described import Description, Unknown
from whole_run.origins import is_ours, is_patch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

TRACE = "lora_export.onnx_export.capture.trace"
# A function of these that is defined outside of an installed package is a patch.
FOREIGN = (
    "torch.onnx", "torch.export", "torch.nn.functional", "torch.nn.modules", "torch.functional",
    "torch._tensor", "transformers.exporters", "transformers.activations",
    "transformers.masking_utils",
)  # fmt: skip
UNUSED = "torchscript_exporter"


@dataclass
class SharedCaptures:
    """The captures of one run. `folder` is shared by its workers."""

    folder: Path
    #: `trace.capture` without sharing, whose functions are looked through for patches.
    right: Any
    #: What is called to make a graph.
    make: Any
    #: Off where the run has --own-captures.
    is_allowed: bool = True
    #: Off inside of a test that captures for itself.
    is_on: bool = True
    #: How often a graph was taken, made and kept, or made and not kept.
    counts: dict[str, int] = field(default_factory=lambda: {"taken": 0, "kept": 0, "apart": 0})
    #: Why graphs were not kept.
    reasons: list[str] = field(default_factory=list)
    _pristine: dict[str, dict[str, Any]] = field(default_factory=dict)
    #: The members of this package's classes before a test can patch them.
    _classes: dict[type, dict[str, Any]] = field(default_factory=dict)
    _hidden: frozenset[str] = frozenset()
    _loaded: int = 0
    _is_ready: bool = False
    _has_all: bool = False

    def look(self) -> None:
        """Remember the functions of this package's modules, before a test can patch them.

        All modules are imported for it, where torch is already. Thousands of modules are loaded and
        few tests add one: their names are gone through only where there are more than before.
        """
        self._hidden = _hidden()
        if "torch" in sys.modules and not self._has_all:
            self._has_all = True
            for module in walk_packages(lora_export.__path__, f"{lora_export.__name__}."):
                if not module.name.endswith("__main__"):
                    import_module(module.name)
        if len(sys.modules) != self._loaded:
            self._loaded = len(sys.modules)
            self._remember(sys.modules.keys() - self._pristine.keys())

    def _remember(self, names: Iterable[str]) -> None:
        for name in filter(is_ours, names):
            self._pristine[name] = dict(vars(sys.modules[name]))
            for one in self._pristine[name].values():
                if isinstance(one, type) and one.__module__ == name:
                    self._classes[one] = dict(vars(one))

    @contextmanager
    def for_all(self) -> Iterator[None]:
        """Share what is captured in the block, also inside of a test that shares nothing."""
        before, self.is_on = self.is_on, self.is_allowed
        try:
            yield
        finally:
            self.is_on = before

    def capture(self, model: Any, inputs: Any, **settings: Any) -> Any:
        """Do what `trace.capture` does, or take what it did before."""
        import onnx

        if self.is_allowed and not self._is_ready:
            self._is_ready = True
            remember_translations()
        try:
            key = self._key(model, inputs, settings)
        except Unknown as why:
            self.counts["apart"] += 1
            self.reasons.append(str(why))
            return self.make(model, inputs, **settings)
        path = self.folder / key
        with _locked(path.with_suffix(".lock")):
            with suppress(FileNotFoundError):
                graph = onnx.ModelProto.FromString(path.read_bytes())
                self.counts["taken"] += 1
                return graph
            before = {*sys.modules}
            graph = self.make(model, inputs, **settings)
            self._remember(sys.modules.keys() - before)  # no test has seen them yet
            handle, part = tempfile.mkstemp(dir=self.folder)
            with os.fdopen(handle, "wb") as file:
                file.write(graph.SerializeToString())
            Path(part).replace(path)
        self.counts["kept"] += 1
        return graph

    def _key(self, model: Any, inputs: Any, settings: dict[str, Any]) -> str:
        import torch

        if not self.is_on:
            raise Unknown("the test captures for itself")
        if model.training:
            raise Unknown("training mode")
        if _hidden() != self._hidden:
            raise Unknown("a module is hidden")
        _refuse_foreign_patches()
        self._refuse_patched_classes()
        description = Description()
        description.add(torch.get_default_dtype())
        description.add(tuple(inputs))
        description.add(self._whole(settings))
        description.add(model)
        self._refuse_patches([self.right, *description.ours])
        return hashlib.sha256(_versions() + description.digest()).hexdigest()

    def _whole(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Return the settings with the values of those that are not given."""
        named = inspect.signature(self.right).parameters.values()
        usual = {one.name: one.default for one in named if one.kind is one.KEYWORD_ONLY}
        return {**usual, **settings}

    def _refuse_patches(self, functions: Iterable[Any]) -> None:
        """Compare what the capture and the network's own functions use with the test's start.

        functions: of this package. What they use of it is followed, function by function.
        """
        waiting, seen = [*functions], set()
        while waiting:
            function = inspect.unwrap(waiting.pop())
            if not isinstance(function, FunctionType | type) or function in seen:
                continue
            seen.add(function)
            if not is_ours(function.__module__ or ""):
                continue
            if isinstance(function, type):
                waiting += [getattr(value, "fget", value) for value in vars(function).values()]
            else:
                waiting += self._used(function)

    def _refuse_patched_classes(self) -> None:
        """Compare the functions of this package's classes with the test's start."""
        for one, before in self._classes.items():
            now = vars(one)
            for name in before.keys() | now.keys():
                is_code = callable(now.get(name)) or callable(before.get(name))
                if is_code and now.get(name) is not before.get(name):
                    raise Unknown(f"{one.__module__}.{one.__name__}.{name} is another")

    def _used(self, function: FunctionType) -> list[Any]:
        """Return what a function's names mean: in its own module, and in those that it uses."""
        names = set(_names(function.__code__))
        own = sys.modules[function.__module__]
        held = [vars(own).get(name) for name in names]
        modules = [one for one in held if isinstance(one, ModuleType) and is_ours(one.__name__)]
        # A name with dots is of an import inside of the function.
        modules += [sys.modules[name] for name in names & sys.modules.keys() if is_ours(name)]
        found = []
        for module in (own, *modules):
            before = self._pristine.get(module.__name__)
            if before is None:
                raise Unknown(f"{module.__name__} was imported by the test")
            now = vars(module)
            for name in names & (before.keys() | now.keys()):
                is_new = isinstance(now.get(name), ModuleType) and name not in before
                if before.get(name) is not now.get(name) and not is_new:
                    raise Unknown(f"{module.__name__}.{name} is another")
                found.append(now.get(name))
        return found


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _refuse_foreign_patches() -> None:
    names = [name for name in sys.modules if name.startswith(FOREIGN) and UNUSED not in name]
    for module in filter(None, map(sys.modules.get, names)):
        for key, value in vars(module).items():
            if is_patch(value):
                raise Unknown(f"{module.__name__}.{key} is patched")


def _hidden() -> frozenset[str]:
    """Return the modules whose import fails, as if they were not installed."""
    if None not in sys.modules.values():  # thirty times as quick as going through the names
        return frozenset()
    return frozenset(name for name, module in [*sys.modules.items()] if module is None)


def _versions() -> bytes:
    """Every installed distribution, and the code of the package under test."""
    global _known_versions  # noqa: PLW0603 - read once a process
    if _known_versions is None:
        digest = hashlib.sha256(sys.version.encode())
        found = {(d.metadata["Name"], d.version) for d in metadata.distributions()}
        digest.update(repr(sorted(found, key=str)).encode())
        for file in sorted(Path(lora_export.__file__).parent.rglob("*.py")):
            digest.update(file.read_bytes())
        _known_versions = digest.digest()
    return _known_versions


_known_versions: bytes | None = None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process at a time make a graph: the others wait for it."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def install(folder: Path, *, is_allowed: bool) -> SharedCaptures:
    """Put the shared captures behind `trace.capture`, before another module has imported it."""
    trace = import_module(TRACE)
    shared = SharedCaptures(folder, trace.capture, trace.capture, is_allowed=is_allowed)

    @wraps(trace.capture)
    def capture(model: Any, inputs: Any, **settings: Any) -> Any:
        return shared.capture(model, inputs, **settings)

    trace.capture = capture
    return shared


def remember_translations() -> None:
    """Let torch build its table of ONNX translations once a process, and copy it for each capture.

    It is read from the installed packages alone, and reading it takes a fifth of a small capture.
    """
    try:
        from torch.onnx._internal.exporter import _registration

        registry = _registration.ONNXRegistry
        right, made = registry.from_torchlib.__func__, {}
    except (ImportError, AttributeError):  # another torch has it elsewhere
        return

    def from_torchlib(cls: type, *arguments: Any, **named: Any) -> Any:
        key = (cls, arguments, *sorted(named.items()))
        if key not in made:
            made[key] = right(cls, *arguments, **named)
        copied = copy(made[key])
        copied.functions = {target: [*found] for target, found in made[key].functions.items()}
        return copied

    registry.from_torchlib = classmethod(from_torchlib)
