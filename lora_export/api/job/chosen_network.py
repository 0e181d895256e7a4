"""The options that name the network: what builds it, and which graph is made of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_export.errors import UsageError
from lora_export.models.hf.tasks import check_task
from lora_export.models.inputs.static_sizes import OPTION, parse_static

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Network:
    """Which network is run, and which graph is made of it."""

    #: The user's factory; None builds a folder's own class.
    model: str | None = None
    #: Decides the class of a folder's network in the place of config.json.
    task: str | None = None
    #: Whether the graph takes and gives the keys and values of earlier tokens.
    kv_cache: bool = False
    #: Dimensions of the graph's inputs that are fixed, each as --static names one.
    static: tuple[str, ...] = ()

    def check(self, described: Sequence[str]) -> None:
        """Refuse two options of which one would have no effect.

        described: the inputs, as --input describes them.

        Raises:
            UsageError: the task is unknown, or two options do not go together.
        """
        check_task(self.task)
        if parse_static(self.static) and self.kv_cache:
            raise UsageError(
                "--kv-cache needs its sizes open: a step takes one token, the prompt many",
                where=OPTION,
                hint="leave one of both out",
                cause="usage/options-contradict",
            )
        if self.task and self.model:
            hint = "the function that --model names chooses the class: leave --task out"
            raise UsageError(
                "is for Hugging Face folders",
                where="--task",
                hint=hint,
                cause="usage/options-contradict",
            )
        if self.kv_cache and self.model:
            message = (
                "is for Hugging Face folders: how the network of --model keeps its past is not "
                "known"
            )
            hint = "let its forward take and return keys and values, and leave --kv-cache out"
            raise UsageError(
                message, where="--kv-cache", hint=hint, cause="usage/options-contradict"
            )
        if self.kv_cache and described:
            hint = "leave --input out"
            raise UsageError(
                "--kv-cache names the inputs itself",
                where="--input",
                hint=hint,
                cause="usage/options-contradict",
            )

    def given(self) -> dict[str, Any]:
        """Return what was set, by name."""
        found = {
            "model": self.model,
            "task": self.task,
            "kv_cache": self.kv_cache,
            "static": list(self.static),
        }
        return {name: value for name, value in found.items() if value}
