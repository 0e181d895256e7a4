"""The nouns of the project: frozen values for what was read and what will be written.

They hold no tensor and no open file, so a plan can be printed, compared and serialised.
"""

from lora_export.records.adapters import (
    Adapter,
    Family,
    MergeRecipe,
    Origin,
    Replacement,
    ScalingRule,
    Terms,
    Update,
)
from lora_export.records.card import Card
from lora_export.records.delta import Delta
from lora_export.records.facts import Facts, ModelFacts
from lora_export.records.files import (
    DTYPE_BITS,
    FLOAT_DTYPES,
    HALF_DTYPES,
    AdapterFile,
    Checkpoint,
    Problem,
    Quantization,
    Shard,
    SideFile,
    TensorRef,
    TensorSpec,
    WeightSet,
)
from lora_export.records.plan import MergePlan, ShardPlan, Step, StepAction
from lora_export.records.progress import Progress, Unit
from lora_export.records.proof import (
    CHANGED,
    ELEMENTS,
    SUM,
    Attribution,
    Check,
    Finding,
    InputSpec,
    KeptEffect,
    Level,
    Span,
    Stage,
    WrittenFile,
    at_level,
    example_sizes,
    size_of,
    spans_of,
)
from lora_export.records.runtime import NameTable, Place
from lora_export.records.survival import KeptUpdate, Survival, UpdateSize

__all__ = [
    "CHANGED",
    "DTYPE_BITS",
    "ELEMENTS",
    "FLOAT_DTYPES",
    "HALF_DTYPES",
    "SUM",
    "Adapter",
    "AdapterFile",
    "Attribution",
    "Card",
    "Check",
    "Checkpoint",
    "Delta",
    "Facts",
    "Family",
    "Finding",
    "InputSpec",
    "KeptEffect",
    "KeptUpdate",
    "Level",
    "MergePlan",
    "MergeRecipe",
    "ModelFacts",
    "NameTable",
    "Origin",
    "Place",
    "Problem",
    "Progress",
    "Quantization",
    "Replacement",
    "ScalingRule",
    "Shard",
    "ShardPlan",
    "SideFile",
    "Span",
    "Stage",
    "Step",
    "StepAction",
    "Survival",
    "TensorRef",
    "TensorSpec",
    "Terms",
    "Unit",
    "Update",
    "UpdateSize",
    "WeightSet",
    "WrittenFile",
    "at_level",
    "example_sizes",
    "size_of",
    "spans_of",
]
