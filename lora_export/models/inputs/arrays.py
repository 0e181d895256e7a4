"""The user's own inputs, as arrays of an .npz file.

Where nothing else declares a model's inputs, these arrays do.
"""

from __future__ import annotations

import zipfile
import zlib
from typing import TYPE_CHECKING, Any

from lora_export.errors import InputError
from lora_export.models.inputs.grammar import DTYPES
from lora_export.records import InputSpec
from lora_export.shown import reason_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read all arrays of an `.npz` file, by name. Arrays of Python objects are refused.

    Raises:
        InputError: the file is no such archive.
    """
    import numpy as np

    try:
        # Numpy leaves the file open when an archive is damaged, and reads single arrays as well.
        with path.open("rb") as file, zipfile.ZipFile(file):
            file.seek(0)
            with np.load(file, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"cannot be read as an .npz archive: {reason_of(error)}",
            where=str(path),
            hint="write it with numpy.savez(path, **inputs)",
            cause="input/probes",
        ) from error


def declared_by_arrays(path: Path) -> tuple[InputSpec, ...]:
    """Declare inputs named, typed and shaped as the arrays of a file are.

    Where all arrays begin with the same size, that is the dynamic dimension `batch`. All other
    sizes are fixed: arrays of one size do not show what else a network allows.

    Raises:
        InputError: the file is no `.npz` archive, is empty, or holds a type that no graph takes.
    """
    arrays = read_arrays(path)
    _refuse_unusable(path, arrays)
    counts = {array.shape[0] if array.ndim else None for array in arrays.values()}
    batch = ("batch",) if len(counts) == 1 and None not in counts else ()
    return tuple(
        InputSpec(name, array.dtype.name, (*batch, *array.shape[len(batch) :]))
        for name, array in arrays.items()
    )


def _refuse_unusable(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    if not arrays:
        raise InputError(
            "holds no array", where=str(path), hint="one array for each input", cause="input/probes"
        )
    for name, array in arrays.items():
        where = f"{path}: {name}"
        if array.dtype.name not in DTYPES:
            hint = f"store it as one of {', '.join(DTYPES)}"
            message = f"has dtype {array.dtype}, which no graph takes"
            raise InputError(message, where=where, hint=hint, cause="input/probes")
        if not name.isidentifier():
            hint = "name every array as the input of forward that it is for"
            raise InputError(
                "is no name that an input can have", where=where, hint=hint, cause="input/probes"
            )
        if not array.size:
            raise InputError("holds no element", where=where, cause="input/probes")


def describe_declared(specs: tuple[InputSpec, ...], path: Path) -> str:
    """Return a warning that names the inputs which the arrays of `path` declare."""
    texts = ", ".join(f"{s.name}={s.dtype}[{','.join(map(str, s.dims))}]" for s in specs)
    free = "the batch is dynamic" if any("batch" in s.dims for s in specs) else "no size is dynamic"
    return (
        f"the inputs are declared by the arrays of {path.name} alone: {texts}; {free}, all other "
        "sizes are fixed (--input declares them otherwise)"
    )
