"""The shim sees everything that changes the disk: its log is held against strace's."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import pytest
from faults.driver import read_calls, settings
from faults.scenarios import SCENARIOS, prepare, tree
from processes.client import environment

CLASSES = {
    "write": "write", "pwrite64": "pwrite", "writev": "writev", "pwritev": "pwritev",
    "pwritev2": "pwritev2", "copy_file_range": "copy_file_range", "sendfile": "sendfile",
    "splice": "splice", "fsync": "fsync", "fdatasync": "fdatasync", "syncfs": "syncfs",
    "sync_file_range": "sync_file_range", "rename": "rename", "renameat": "rename",
    "renameat2": "rename", "truncate": "truncate", "ftruncate": "ftruncate",
    "fallocate": "fallocate", "open": "open", "openat": "open", "creat": "open", "link": "link",
    "linkat": "link", "symlink": "symlink", "symlinkat": "symlink", "unlink": "unlink",
    "unlinkat": "unlink", "rmdir": "unlink", "mkdir": "mkdir", "mkdirat": "mkdir",
    "chmod": "chmod", "fchmod": "fchmod", "fchmodat": "chmod",
}  # fmt: skip
OURS = {
    "fopen": "open", "rmdir": "unlink", "posix_fallocate": "fallocate", "renameat": "rename",
    "renameat2": "rename",
}  # fmt: skip
TRACED = """
import ctypes, os, sys
log = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
ctypes.CDLL(None).shim_arm(os.fsencode(sys.argv[2]), ctypes.c_long(0), 0, log)
from lora_export.cli import main
main(sys.argv[3:], prog_name="lora-export")
"""
LINE = re.compile(r"^\d+ +(\w+)\((.*)")
READING = re.compile(r"O_RDONLY(?!.*(O_CREAT|O_TRUNC))")


def can_trace():
    program = shutil.which("strace")
    if not program:
        return False
    return subprocess.run([program, "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not can_trace(), reason="strace is absent, or may not trace here")
@pytest.mark.faults
@pytest.mark.parametrize(
    "scenario", [s for s in SCENARIOS if s.force], ids=lambda scenario: scenario.name
)
def test_the_shim_sees_what_strace_sees(pool, shim, fault_root, scenario):
    root = fault_root / "traced"
    prepared = prepare(pool, scenario, root)
    case, trace, log = prepared.copy(root / "case"), root / "trace", root / "log"
    argv = [word for word in prepared.run(case, "told").argv if word != "--no-verify"]
    command = [sys.executable, "-c", TRACED, str(log), str(case), *argv]
    calls = ",".join([*CLASSES, "mmap"])
    subprocess.run(
        ["strace", "-f", "-y", "-s", "0", "-e", f"trace={calls}", "-o", str(trace), "-E",
         f"LD_PRELOAD={shim}", *command],
        env=environment(**settings()), check=True, capture_output=True,
    )  # fmt: skip
    seen = [OURS.get(call.name, call.name) for call in read_calls(log)]
    assert sorted(seen) == sorted(changes(trace.read_text(), str(case)))
    told = [OURS.get(call.name, call.name) for call in prepared.calls]
    assert others(seen) == others(told), "without the proof there are other calls"
    if "--no-verify" not in scenario.argv:
        assert tree(case / "out") == prepared.new
    shutil.rmtree(root)


def others(names):
    """Without what depends on whether torch is still to be imported: room is then reserved and the
    untouched ranges are copied meanwhile, in files that are opened once more afterwards."""
    return sorted(name for name in names if name not in {"open", "fallocate", "copy_file_range"})


def changes(trace, folder):
    """The calls below the folder in strace's words, as the shim would call them."""
    for line in trace.splitlines():
        match = LINE.match(line)
        if not match or "resumed>" in line:
            continue
        name, rest = match.groups()
        first = rest.partition(",")[0]
        if name in {"copy_file_range", "sendfile", "splice"}:  # the input's path is there too
            first = re.findall(r"<([^>]*)>", rest)[0 if name == "sendfile" else 1]
        elif name.startswith(("rename", "link", "open", "unlink", "mkdir", "symlink", "fchmodat")):
            first = rest
        if folder not in first or (CLASSES.get(name) == "open" and READING.search(rest)):
            continue
        if name == "mmap":
            assert not ("MAP_SHARED" in rest and "PROT_WRITE" in rest), line
        else:
            yield CLASSES[name]
