"""What memory is available, as Linux writes it: no test looks at this machine's own."""

from __future__ import annotations

import pytest
from peft import LoraConfig
from peft_folders import llama, save

from lora_export.api import merge
from lora_export.models import memory
from lora_export.models.memory import available_memory

KB, MB, GB = 2**10, 2**20, 2**30
MEMINFO = (
    "MemTotal:       24684092 kB\nMemFree:          524288 kB\nMemAvailable:   8388608 kB\n"
    "Buffers:           33328 kB\nCached:          7823548 kB\n"
)
UNLIMITED = 9223372036854771712

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def machine(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(str(text))
    return root


def group(folder, most, used, cache=0, *, v1=False):
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    names = names if v1 else ("memory.max", "memory.current", "inactive_file")
    stat = f"anon 5\n{names[2]} {cache}\nactive_file 7\n"
    return {f"{folder}/{names[0]}": f"{most}\n", f"{folder}/{names[1]}": f"{used}\n",
            f"{folder}/memory.stat": stat}  # fmt: skip


V2, V1 = "sys/fs/cgroup", "sys/fs/cgroup/memory"
HERE = {"proc/meminfo": MEMINFO}
IN_V2 = {**HERE, "proc/self/cgroup": "0::/job/step\n"}
IN_V1 = {**HERE, "proc/self/cgroup": "9:name=systemd:/\n4:cpu,memory:/docker/c0ffee\n0::/\n"}


@pytest.mark.parametrize(
    ("files", "available"),
    [
        pytest.param({}, None, id="a system that says nothing"),
        pytest.param({"proc/meminfo": "MemTotal: 9 kB\n"}, None, id="a kernel before 3.14"),
        pytest.param(HERE, 8 * GB, id="page cache counts, and is not free"),
        pytest.param({**IN_V2, **group(f"{V2}/job/step", "max", GB)}, 8 * GB, id="no limit"),
        pytest.param({**IN_V2, **group(f"{V2}/job/step", 4 * GB, 3 * GB, 2 * GB)}, 3 * GB, id="v2"),
        pytest.param(
            {**IN_V2, **group(f"{V2}/job/step", 16 * GB, GB), **group(f"{V2}/job", 2 * GB, GB)},
            GB,
            id="v2, a group above",
        ),
        pytest.param(
            {**IN_V2, **group(V2, 2 * GB, GB)}, GB, id="v2, a container that sees its own group"
        ),
        pytest.param(
            {**IN_V1, **group(f"{V1}/docker/c0ffee", 6 * GB, 5 * GB, GB, v1=True)}, 2 * GB, id="v1"
        ),
        pytest.param(
            {**IN_V1, **group(V1, 4 * GB, 2 * GB, v1=True)}, 2 * GB, id="v1, the host's path"
        ),
        pytest.param({**IN_V1, **group(V1, UNLIMITED, GB, v1=True)}, 8 * GB, id="v1, no limit"),
        pytest.param({**IN_V2, **group(V2, GB, 2 * GB)}, 0, id="above its limit"),
        pytest.param({**IN_V2, **group(V2, "many", GB)}, 8 * GB, id="a limit that is no number"),
        pytest.param({**HERE, "proc/self/cgroup": "nonsense\n\n"}, 8 * GB, id="no group"),
        pytest.param(
            {**IN_V2, f"{V2}/memory.max": f"{GB}\n", f"{V2}/memory.current": f"{MB}\n"},
            GB - MB,
            id="v2 without memory.stat",
        ),
    ],
)
def test_the_least_of_the_machine_and_its_groups(files, available, tmp_path):
    assert available_memory(machine(tmp_path, files)) == available


@pytest.fixture
def folders(tmp_path):
    save(tmp_path, llama(), LoraConfig(r=2, target_modules=["q_proj"]))
    return tmp_path


@pytest.mark.parametrize(
    ("available", "level"), [(None, True), (0, False), (2 * MB, True), (100 * KB, False)]
)
def test_the_model_runs_where_its_memory_is_available(available, level, folders, monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: available)
    report = merge(folders / "base", [folders / "lora"], folders / "out")
    assert ("merged = unmerged (torch)" in [check.name for check in report.checks]) == level
    told = " ".join(report.warnings)
    assert ("by weights only: running the model needs about" in told) != level
