"""ONNX files that exist already, made and compared again for `verify`."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_export.api.graph.encoder_pair import is_pair
from lora_export.api.graph.making import make_graph
from lora_export.api.graph.places import Place
from lora_export.api.graph.runtime_folder import check_around, refuse_missing
from lora_export.api.proof.model_proof import Proven
from lora_export.checkpoint.folder.side_files import is_foreign_weights, weight_files
from lora_export.errors import InputError, UsageError

if TYPE_CHECKING:
    from lora_export.api.graph.forms import Form
    from lora_export.api.graph.making import Made
    from lora_export.api.job.planned_job import Job
    from lora_export.onnx_export.layout.layouts import Layout
    from lora_export.records import Check


@dataclass(frozen=True, slots=True)
class Finished:
    """An artefact that may hold ONNX files."""

    #: The file or the folder.
    path: Path
    #: Of its ONNX files.
    forms: tuple[Form, ...]
    #: How these files lie.
    layout: Layout

    def is_onnx(self, job: Job) -> bool:
        """Return whether it is an .onnx file, or a folder of such files."""
        if self.layout.is_folder:
            return self.path.is_dir()
        return self.path.suffix == ".onnx" or (self.path.is_dir() and is_pair(job))

    def refuse_unnamed(self) -> None:
        """Refuse a folder of .onnx files alone, of which neither manifest nor option says more.

        Raises:
            UsageError: the artefact is such a folder.
        """
        names = weight_files(self.path) if self.path.is_dir() else []
        is_foreign = all(is_foreign_weights(self.path / name) for name in names)
        if is_foreign and any(name.endswith(".onnx") for name in names):
            raise UsageError(
                "holds .onnx files, and nothing says how they lie",
                where=str(self.path),
                hint="--layout NAME --precision NAME,NAME; --kv-cache for an encoder and its "
                "decoder",
                cause="usage/missing-fact",
            )

    def prove(self, job: Job) -> tuple[Proven, dict[str, Any]]:
        """Make everything again in a temporary folder; return (proof, facts for the report).

        Raises:
            InputError: a file of the layout is missing, or is no ONNX file.
            FitError, UsageError, VerificationError: see making.make_graph.
        """
        with tempfile.TemporaryDirectory(prefix="lora-export-") as folder:
            work = Path(folder) / "merged"
            place = Place(self.path, work, str(self.path), writes=False, layout=self.layout)
            if self.layout.is_folder:
                refuse_missing(self.forms, place)
            made = make_graph(job, self.forms, place)
            around = _checks_around(job, place, self.forms, made)
        proven = Proven(
            (*around, *made.checks),
            made.warnings,
            made.attribution,
            kept=made.kept,
            unproven=made.unproven,
        )
        return proven, dict(made.facts)


def _checks_around(
    job: Job, place: Place, forms: tuple[Form, ...], made: Made
) -> tuple[Check, ...]:
    """Return the checks of what is beside the graphs; none where a check of a graph has failed.

    Raises:
        InputError: a graph cannot be read, and no check says so.
    """
    try:
        return check_around(job, forms, place)
    except InputError:
        if all(check.passed for check in made.checks):
            raise
        return ()
