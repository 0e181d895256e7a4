"""What is shipped is what belongs: contents, entry point, version, types, lower bounds."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from importlib import metadata
from pathlib import Path, PurePosixPath

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import lora_export

SOURCES = {".py", ".typed", ".json", ".toml"}


@pytest.fixture(scope="module")
def distributions(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel and the sdist as the checkout makes them, with this environment's hatchling."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def wheel(distributions: Path) -> zipfile.ZipFile:
    [path] = distributions.glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def sdist(distributions: Path) -> set[str]:
    [path] = distributions.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


def test_wheel_holds_the_package_and_nothing_else(root: Path, wheel: zipfile.ZipFile) -> None:
    package = {name for name in wheel.namelist() if ".dist-info/" not in name}
    files = (root / "lora_export").rglob("*")
    assert package == {
        file.relative_to(root).as_posix() for file in files if file.suffix in SOURCES
    }
    assert "lora_export/py.typed" in package


def test_wheel_carries_the_licence(root: Path, wheel: zipfile.ZipFile) -> None:
    [licence] = [name for name in wheel.namelist() if name.endswith("/licenses/LICENSE")]
    assert wheel.read(licence) == (root / "LICENSE").read_bytes()
    assert b"Apache License" in wheel.read(licence)


def test_wheel_says_what_it_is(wheel: zipfile.ZipFile) -> None:
    [name] = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    fields = Parser().parsestr(wheel.read(name).decode())
    assert fields["Name"] == "lora-export"
    assert fields["Version"] == lora_export.__version__
    assert fields["License-Expression"] == "Apache-2.0"
    assert fields["Requires-Python"] == ">=3.10"
    assert fields.get_payload().startswith("# lora-export")


def test_sdist_can_be_tested_and_holds_no_litter(sdist: set[str]) -> None:
    assert {
        "pyproject.toml",
        "tox.ini",
        "constraints.txt",
        "README.md",
        "LICENSE",
        "lora_export/__init__.py",
        "tests/conftest.py",
        "samples/digits/base.safetensors",
    } <= sdist
    parts = {part for name in sdist for part in PurePosixPath(name).parts}
    assert not [part for part in parts if part.endswith("_cache") or part in {".venv", ".tox"}]


def test_entry_point() -> None:
    [entry] = metadata.entry_points(group="console_scripts", name="lora-export")
    assert entry.value == "lora_export.cli:main"
    assert callable(entry.load())


def test_version_has_one_source(root: Path) -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", lora_export.__version__)
    assert metadata.version("lora-export") == lora_export.__version__
    script = Path(sys.executable).with_name("lora-export")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert lora_export.__version__ in done.stdout
    changelog = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{lora_export.__version__}]" in changelog or "## [Unreleased]" in changelog


def test_the_installed_package_is_tested(root: Path) -> None:
    origin = metadata.distribution("lora-export").read_text("direct_url.json") or ""
    if '"editable": true' in origin:
        assert Path(lora_export.__file__).is_relative_to(root)
    else:
        assert not Path(lora_export.__file__).is_relative_to(root / "lora_export")


def pins(path: Path, python: str) -> dict[str, str]:
    """Exact versions of a constraints file that hold for a Python version, by name."""
    lines = path.read_text(encoding="utf-8").splitlines()
    found = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    return {
        item.name: str(item.specifier).removeprefix("==")
        for item in found
        if item.marker is None or item.marker.evaluate({"python_version": python})
    }


@pytest.mark.parametrize("python", ["3.10", "3.11"])
def test_constraints_name_every_direct_dependency(root: Path, python: str) -> None:
    named = pins(root / "constraints.txt", python)
    for requirement in direct(python):
        assert requirement.specifier.contains(named[requirement.name]), requirement


def test_lowest_is_what_the_metadata_admits(root: Path) -> None:
    """constraints-lowest.txt holds each lower bound; of torch, there is no lower CPU build."""
    named = pins(root / "constraints-lowest.txt", "3.11")
    for requirement in direct("3.11"):
        bounds = [spec.version for spec in requirement.specifier if spec.operator in {">=", "=="}]
        if requirement.name != "torch":
            assert [*map(Version, bounds)] == [Version(named[requirement.name])], requirement


def direct(python: str) -> list[Requirement]:
    """What the package and its extras hf and samples ask for."""
    found = map(Requirement, metadata.requires("lora-export") or [])
    return [
        requirement
        for requirement in found
        if requirement.name != "lora-export"
        and any(
            requirement.marker is None
            or requirement.marker.evaluate({"python_version": python, "extra": extra})
            for extra in ("", "hf", "samples")
        )
    ]
