"""The options of the proof: how a model is run. Bad values are refused before any work."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from pathlib import Path

from lora_export.errors import InputError, UsageError
from lora_export.models.inputs.grammar import parse_inputs
from lora_export.verification.runtime.sessions import find_providers

_EXTENT = ("proof", "require")
"""The options that decide how far to prove, and describe no run."""


@dataclass(frozen=True, slots=True)
class ProofOptions:
    """How far a result is proven, and how a network is run for it."""

    #: The inputs, each as --input describes one.
    input: tuple[str, ...] = ()
    #: An .npz file of the user's own probes.
    inputs: str | Path | None = None
    #: Absolute tolerance; None takes the derived one. For a file in a lower precision it bounds
    #: the distance of its outputs from the float32 file's.
    atol: float | None = None
    #: Tolerance relative to the largest output; otherwise like `atol`.
    rtol: float | None = None
    #: Seed of the probes.
    seed: int = 0
    #: How far to prove: "model" runs the network as well, "weights" does not.
    proof: str = "model"
    #: "model" refuses a result whose network could not be run; None accepts it.
    require: str | None = None
    #: ONNX Runtime's execution providers by name; empty takes the CPU's.
    provider: tuple[str, ...] = ()

    def given(self) -> list[str]:
        """Return the options that were set, by their names on the command line."""
        return [
            f"--{f.name}"
            for f in fields(self)
            if getattr(self, f.name) != f.default and f.name not in _EXTENT
        ]

    @property
    def describes_run(self) -> bool:
        """Return whether an option describes how the model is run."""
        return self != replace(ProofOptions(), **{n: getattr(self, n) for n in ("seed", *_EXTENT)})

    def check_made(
        self,
        *,
        verify: bool,
        left_out: str = "--no-verify",
        hint: str = "leave one of both out",
    ) -> None:
        """Refuse to require a proof that another option leaves out.

        Args:
            verify: whether anything but digests is proven.
            left_out: what leaves the proof out otherwise, for the message.
            hint: what to do about it.

        Raises:
            UsageError: --require model beside --no-verify or --proof weights.
        """
        if self.require and (self.proof == "weights" or not verify):
            what = left_out if not verify else "--proof weights"
            message = f"requires a proof that {what} leaves out"
            raise UsageError(
                message, where="--require model", hint=hint, cause="usage/options-contradict"
            )

    def check(self) -> None:
        """Refuse options that no run could use, also where no model is run.

        Raises:
            UsageError: an input's description cannot be parsed, a tolerance is negative or not
                finite, or a provider is not available here.
            InputError: the file of probes does not exist.
        """
        parse_inputs(self.input)
        find_providers(self.provider)
        for name, value in (("--atol", self.atol), ("--rtol", self.rtol)):
            if value is not None and not 0 <= value < math.inf:
                raise UsageError(
                    f"{value} is no tolerance",
                    where=name,
                    hint="0 or more, finite",
                    cause="usage/option-value",
                )
        if self.inputs and not Path(self.inputs).is_file():
            raise InputError("no such file", where=str(self.inputs), cause="input/missing-file")
