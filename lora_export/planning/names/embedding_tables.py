"""The names that checkpoints give to the table that turns tokens into vectors."""

TABLES = (
    "wte.weight", "embed_tokens.weight", "word_embeddings.weight", "tok_embeddings.weight",
    "shared.weight", "embed_in.weight",
)  # fmt: skip
"""The ends of such names, without the modules around them."""
