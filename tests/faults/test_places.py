"""Outputs that may not be, or only just: limits, read-only folders, inputs, links, umasks."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from dataclasses import replace

import pytest
from faults.driver import settings
from faults.points import is_named
from faults.scenarios import HAS_JOBS, SCENARIOS, prepare, read_tensors, tree
from processes.client import environment

pytestmark = pytest.mark.faults
COMMAND = 'from lora_export.cli import main; main(prog_name="lora-export")'
FILE, SHARDS, ONNX = (
    "merge: file, empty target",
    "merge: shards, empty target",
    "onnx: empty target",
)


@pytest.fixture(scope="module")
def scenarios(pool, fault_root):
    """Of each kind of output one scenario, prepared once for all tests of this file."""
    found = {}
    for number, scenario in enumerate(SCENARIOS):
        if scenario.name in {FILE, SHARDS, ONNX}:
            found[scenario.name] = prepare(pool, scenario, fault_root / f"places-{number}")
    yield found
    for prepared in found.values():
        shutil.rmtree(prepared.template.parent)


@pytest.fixture(params=[FILE, SHARDS, ONNX])
def prepared(request, scenarios):
    return scenarios[request.param]


@pytest.fixture
def case(prepared, tmp_path):
    return prepared.copy(tmp_path.resolve() / "case")


def run_with(pool, run, **options):
    [outcome] = pool.run(replace(run, options={**run.options, **options}))
    assert "Traceback" not in outcome.stderr
    return outcome


@pytest.mark.parametrize("part", ["700 bytes", "all but one byte"])
def test_a_limit_of_the_size_of_files(pool, prepared, case, part):
    template = prepared.copy(case.with_name("whole"))
    run_with(pool, prepared.run(template, "told"))
    sizes = [path.stat().st_size for path in (template / "out").rglob("*") if path.is_file()]
    limit = 700 if part == "700 bytes" else max(sizes) - 1
    run = prepared.run(case, "told")
    outcome = run_with(pool, replace(run, argv=(*run.argv, "-q"), watch=None), fsize=limit)
    assert outcome.status == 7
    assert "File too large" in outcome.stderr
    assert is_named(case / "out", outcome.stderr)
    assert list((case / "out").iterdir()) == []
    assert tree(case / "in") == prepared.inputs
    assert run_with(pool, prepared.run(case, "again")).status == 0
    assert tree(case / "out") == prepared.new


def mounted(script, *arguments):
    """Run a shell script in a mount namespace of its own; None where that is not allowed."""
    unshare = shutil.which("unshare")
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    prefix = [unshare, *user, "--mount"]
    probe = 'mount -t tmpfs none "$1" && mount -o remount,ro "$1"'
    if not unshare:
        return None
    tried = [*prefix, "sh", "-c", probe, "sh", "/mnt"]
    if subprocess.run(tried, capture_output=True, check=False).returncode:
        return None
    return subprocess.run(
        [*prefix, "sh", "-ec", script, "sh", *map(str, arguments)],
        env=environment(**settings()), capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_a_read_only_file_system(prepared, case):
    script = 'mount --bind "$1" "$1"; mount -o remount,ro,bind "$1"; shift; exec "$@"'
    argv = prepared.run(case, "told").argv
    process = mounted(script, case / "out", sys.executable, "-c", COMMAND, *argv)
    if process is None:
        pytest.skip("no file system may be mounted here")
    assert process.returncode == 6, process.stderr
    assert "is not writable" in process.stderr
    assert is_named(case / "out", process.stderr)
    assert tree(case / "out") == {}


def test_a_full_file_system(prepared, case):
    script = (
        'mount -t tmpfs -o size=4k,nr_inodes=64 none "$1"; out=$1; shift; status=0;'
        '"$@" || status=$?; ls -A "$out" >&2; exit $status'
    )
    argv = prepared.run(case, "told").argv
    process = mounted(script, case / "out", sys.executable, "-c", COMMAND, *argv)
    if process is None:
        pytest.skip("no file system may be mounted here")
    assert process.returncode == 7, process.stderr
    assert "No space left" in process.stderr or "free" in process.stderr
    assert (
        process.stderr.rstrip().splitlines()[-1].startswith(("error:", "more:", "next:", " "))
    )  # of ls nothing


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere; see the file systems above")
def test_a_read_only_folder(pool, prepared, case):
    (case / "out").chmod(0o555)
    outcome = run_with(pool, prepared.run(case, "told"))
    (case / "out").chmod(0o755)
    assert outcome.status == 6
    assert "not writable" in outcome.stderr


def test_an_output_in_or_on_the_input(pool, scenarios, tmp_path):
    shards = scenarios[SHARDS]
    case = shards.copy(tmp_path.resolve() / "case")
    (case / "link").symlink_to(case / "in" / "folder")
    run = shards.run(case, "told")
    for place in ("in/folder/new", "in/folder", "in", "in/folder/1_Pooling/x", "link/new", "link"):
        argv = tuple(
            str(case / place) if word == str(case / "out/out") else word for word in run.argv
        )
        for more in ((), ("--force",)):
            outcome = run_with(pool, replace(run, argv=(*argv, *more)))
            assert outcome.status == 6, (place, outcome.stderr)
            assert tree(case / "in") == shards.inputs
    one = scenarios[FILE]
    run = one.run(case, "told")
    (case / "hard.safetensors").hardlink_to(case / "in" / "base.safetensors")
    for place in ("in/base.safetensors", "in/lora.safetensors", "hard.safetensors"):
        output = str(case / "out" / one.scenario.output)
        argv = tuple(str(case / place) if word == output else word for word in run.argv)
        outcome = run_with(pool, replace(run, argv=(*argv, "--force")))
        assert outcome.status == 6, (place, outcome.stderr)
        assert tree(case / "in") == one.inputs


def test_paths_through_links(pool, prepared, case):
    """Inputs and the folder of the output are reached through links; a link is no output."""
    through = case.with_name("through")
    through.mkdir()
    for name in ("in", "out"):
        (through / name).symlink_to(case / name)
    run = prepared.run(case, "told")
    argv = tuple(word.replace(f"{case}/", f"{through}/") for word in run.argv)
    assert run_with(pool, replace(run, argv=argv)).status == 0
    assert tree(case / "out") == prepared.new
    output = case / "out" / prepared.scenario.output
    moved = output.rename(case / "elsewhere")
    output.symlink_to(moved)
    before = tree(case)
    outcome = run_with(pool, replace(run, argv=(*argv, "--force")))
    assert outcome.status == 6
    assert tree(case) == before


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o077])
def test_rights_are_those_of_the_umask(pool, prepared, case, umask):
    for path in (case / "in").rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o400)
    assert run_with(pool, prepared.run(case, "told"), umask=umask).status == 0
    for path in (case / "out").rglob("*"):
        status = path.lstat()
        wanted = 0o777 if stat.S_ISDIR(status.st_mode) else 0o666
        assert stat.S_IMODE(status.st_mode) == wanted & ~umask, path
        assert path.is_dir() or (stat.S_ISREG(status.st_mode) and status.st_nlink == 1)


def variants():
    yield {"cwd": "/"}, ()
    yield {"umask": 0o077}, ()
    for jobs in (1, 2, 4) if HAS_JOBS else ():
        yield {}, ("--jobs", str(jobs))


def test_the_same_inputs_give_the_same_bytes(pool, prepared, tmp_path):
    for number, (options, more) in enumerate(variants()):
        case = prepared.copy(tmp_path / f"case-{number}")
        run = prepared.run(case, "told")
        if more and run.argv[0] != "merge":
            continue
        assert run_with(pool, replace(run, argv=(*run.argv, *more)), **options).status == 0
        assert tree(case / "out") == prepared.new


def test_the_order_of_shards_does_not_matter(pool, scenarios, tmp_path):
    """The same shards, made in another order and listed in another order in the index."""
    prepared = scenarios[SHARDS]
    case = prepared.copy(tmp_path / "case")
    folder = case / "in" / "folder"
    contents = {path.name: path.read_bytes() for path in folder.glob("model*")}
    for name in contents:
        (folder / name).unlink()
    for name in sorted(contents, reverse=True):
        (folder / name).write_bytes(contents[name])
    index = json.loads(contents["model.safetensors.index.json"])
    index["weight_map"] = dict(reversed(index["weight_map"].items()))
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert run_with(pool, prepared.run(case, "told")).status == 0
    written, known = tree(case / "out"), dict(prepared.new)
    for made in ("out/model.safetensors.index.json", "out/lora_export.json"):
        written.pop(made), known.pop(made)  # follow the order of the index, if they like
    assert written == known
    assert len(read_tensors(case / "out" / "out")) == 12
