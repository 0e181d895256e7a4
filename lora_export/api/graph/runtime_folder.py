"""The folder of a layout: the files beside its graphs, written and proven again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.errors import InputError
from lora_export.models.generation.cached_pair import DECODER, ENCODER
from lora_export.onnx_export.file import external
from lora_export.records import Problem, at_level

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_export.api.graph.forms import Form
    from lora_export.api.graph.places import Place
    from lora_export.api.job.planned_job import Job
    from lora_export.records import Check, SideFile, WrittenFile


def write_around(job: Job, forms: Sequence[Form], place: Place) -> tuple[WrittenFile, ...]:
    """Write the model's own files beside its graphs; nothing beside a bare file.

    Raises:
        InputError: a file became shorter while it was copied, or is no JSON object.
        StorageError: the system refuses a write.
    """
    from lora_export.execution.stage import write_side_files

    if not place.layout.is_folder:
        return ()
    return tuple(write_side_files(_around(job, forms, place), place.path))


def check_around(job: Job, forms: Sequence[Form], place: Place) -> tuple[Check, ...]:
    """Check that the files beside the graphs are those of the model; no check of a bare file.

    A folder has no further graph or weights: a client might take them in place of the right ones.

    Raises:
        InputError: a graph cannot be read.
    """
    from lora_export.verification.files.side_file_check import check_files

    if not place.path.is_dir():
        return ()
    files: tuple[SideFile, ...] = ()
    graphs = [place.path / f"{part}_model.onnx" for part in (ENCODER, DECODER)]
    if place.layout.is_folder:
        graphs = [place.file(form) for form in forms]
        files = _around(job, forms, place)
    weights = {
        file.relative_to(place.path).as_posix()
        for graph in graphs
        for file in (graph, *external.data_files(graph))
    }
    return at_level("manifest", check_files(files, place.path, weights))


def refuse_missing(forms: Sequence[Form], place: Place) -> None:
    """Refuse a folder that lacks a graph of these forms.

    Raises:
        InputError: some are missing; all are named.
    """
    problems = [
        Problem(
            "no such file",
            str(path),
            "name the precisions that are there: --precision NAME,NAME",
            cause="input/missing-file",
        )
        for path in map(place.file, forms)
        if not path.is_file()
    ]
    if problems:
        raise InputError.of(problems)


def _around(job: Job, forms: Sequence[Form], place: Place) -> tuple[SideFile, ...]:
    from lora_export.onnx_export.layout.files_around import files_around

    graphs = [place.layout.file(form.precision.name) for form in forms]
    return files_around(place.layout, job.plan.side_files, place.path, graphs)
