"""What PEFT and transformers warn of in the matrix, each with a reason that is no fault."""

import pytest

WHILE_SAVING = (
    "`is_gradient_checkpointing` is deprecated:FutureWarning",
    "fan_in_fan_out is set to:UserWarning",
    "Setting `save_embedding_layers`:UserWarning",
    "Model (has|with) `tie_word_embeddings=True`:UserWarning",
)
OF_OPTIONS = (
    "Input and output embeddings are no longer tied:UserWarning",
    "The following (rank|alpha)_pattern keys did not match:RuntimeWarning",
    # It takes the bias of lora_bias for a damaged factor.
    "Adapter 'default'.* have invalid shape:UserWarning",
)


def ignored(messages):
    """Return the marks that let these warnings pass."""
    return [pytest.mark.filterwarnings(f"ignore:{message}") for message in messages]
