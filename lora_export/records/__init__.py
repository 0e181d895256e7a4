"""The nouns of the house: frozen values that say what was read and what will be written.

No tensor and no open file is held here, so a plan can be printed, compared and serialised.
"""

from lora_export.records.adapters import (
    Adapter,
    Delta,
    Facts,
    MergeRecipe,
    ModelFacts,
    Origin,
    Replacement,
    Said,
    ScalingRule,
    Update,
)
from lora_export.records.card import Card
from lora_export.records.files import (
    DTYPE_BITS,
    FLOAT_DTYPES,
    HALF_DTYPES,
    AdapterFile,
    Checkpoint,
    Problem,
    Shard,
    SideFile,
    TensorRef,
    TensorSpec,
)
from lora_export.records.plan import MergePlan, ShardPlan, Step, StepAction
from lora_export.records.proof import (
    SUM,
    Attribution,
    Check,
    InputSpec,
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

__all__ = [
    "DTYPE_BITS",
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
    "InputSpec",
    "Level",
    "MergePlan",
    "MergeRecipe",
    "ModelFacts",
    "NameTable",
    "Origin",
    "Place",
    "Problem",
    "Replacement",
    "Said",
    "ScalingRule",
    "Shard",
    "ShardPlan",
    "SideFile",
    "Span",
    "Stage",
    "Step",
    "StepAction",
    "TensorRef",
    "TensorSpec",
    "Update",
    "WrittenFile",
    "at_level",
    "example_sizes",
    "size_of",
    "spans_of",
]
