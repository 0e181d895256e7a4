"""Hold a finished artefact, and what is said to be its inputs, against its manifest."""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING

from lora_export.checkpoint.folder.side_files import weight_files
from lora_export.execution.digests import hash_files
from lora_export.records import Check

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lora_export.checkpoint.folder.recorded import Recorded
    from lora_export.records import Adapter, Checkpoint

_CHANGED = "damaged or edited after it was written: write it again, and do not ship this one"
_OTHER = (
    "name the base and the adapters that it was made of; to hold it against others, move its "
    "manifest away"
)


def check_outputs(path: Path, recorded: Recorded) -> tuple[Check, ...]:
    """The manifest lists every weight file of the artefact, and what it lists is as it was.

    A file that no digest covers would be loaded all the same.
    """
    folder = path if path.is_dir() else path.parent
    present = weight_files(path) if path.is_dir() else [path.name]
    unlisted = [name for name in present if name not in recorded.outputs]
    wrong = unlisted if present else [path.name]
    detail = f"{len(present)} weight files, of which the manifest lists {len(present) - len(wrong)}"
    listed = Check("files listed", not wrong, len(wrong), 0, ", ".join(wrong[:3]), detail)
    files = {folder / name: digest for name, digest in recorded.outputs.items()}
    there = hash_files([file for file in files if file.is_file()], os.cpu_count() or 1)
    changed = [
        file.relative_to(folder).as_posix()
        for file, digest in files.items()
        if there.get(file) != digest
    ]
    detail = f"{len(files) - len(changed)} of {len(files)} files have the SHA-256 of the manifest"
    digests = Check(
        "digests", not changed, len(changed), 0, ", ".join(changed[:3]), detail, hint=_CHANGED
    )
    return listed, digests


def check_inputs(
    base: Checkpoint, adapters: Sequence[Adapter], recorded: Recorded
) -> tuple[Check, ...]:
    """The base's files and the adapters are those of the manifest; no claim without a digest."""
    wrong = _other(
        {str(adapter.path): f"{adapter.digest} {adapter.joined_digest}" for adapter in adapters},
        [f"{adapter.digest} {adapter.joined_digest}" for adapter in recorded.adapters],
    )
    detail = f"{len(adapters)} adapters"
    if all(recorded.base):
        files = hash_files([shard.file for shard in base.shards], os.cpu_count() or 1)
        wrong += _other({str(file): digest for file, digest in files.items()}, recorded.base)
        detail += f", {len(files)} files of the base"
    else:
        detail += "; no digest of the base was recorded"
    where = ", ".join(wrong[:3])
    if wrong:
        names = ", ".join(adapter.name for adapter in recorded.adapters)
        detail = f"other SHA-256 than the manifest's; its adapters are {names}; {detail}"
    name = "inputs are those of the manifest"
    return (Check(name, not wrong, len(wrong), 0, where, detail, hint=_hint(adapters, recorded)),)


def _hint(adapters: Sequence[Adapter], recorded: Recorded) -> str:
    """What to do about other inputs. What was ignored must be ignored again by who verifies."""
    here = {name for adapter in adapters for name in adapter.ignored}
    left = [name for one in recorded.adapters for name in one.ignored if name not in here]
    if not left:
        return _OTHER
    options = " ".join(f"--ignore '{name}'" for name in dict.fromkeys(left))
    return f"the manifest says that it was made with {options}; {_OTHER}"


def _other(given: dict[str, str], recorded: Sequence[str]) -> list[str]:
    """The given that are not recorded, and a word on the recorded that are not given."""
    left = Counter(recorded)
    left.subtract(given.values())
    missing = sum(count for count in left.values() if count > 0)
    other = [name for name, digest in given.items() if left[digest] < 0]
    return other if other or not missing else [f"{missing} recorded files that are not named"]
