"""As many tokens as `positions` returns fit into a model of transformers, and not one more."""

import pytest
import torch
import transformers as tr

from lora_export.models.inputs.positions import positions

TABLE = 24
TINY = {
    "vocab_size": 40, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 8, "max_position_embeddings": TABLE,
}  # fmt: skip
GPT2 = {"vocab_size": 40, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": TABLE}
PAIR = {
    "vocab_size": 40, "d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "decoder_ffn_dim": 8,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 8,
    "max_position_embeddings": TABLE, "decoder_start_token_id": 1,
}  # fmt: skip
OPT = {**TINY, "ffn_dim": 8, "word_embed_proj_dim": 8}

# Each class, its configuration, and the places of the table that no token takes.
TABLES = {
    "RoBERTa": (tr.RobertaModel, tr.RobertaConfig(**TINY, pad_token_id=1), 2),
    "RoBERTa that pads with another": (
        tr.RobertaModel, tr.RobertaConfig(**TINY, pad_token_id=5), 6,
    ),
    "XLM-RoBERTa": (tr.XLMRobertaModel, tr.XLMRobertaConfig(**TINY, pad_token_id=1), 2),
    "CamemBERT": (tr.CamembertModel, tr.CamembertConfig(**TINY, pad_token_id=1), 2),
    "I-BERT": (tr.IBertModel, tr.IBertConfig(**TINY, pad_token_id=1), 2),
    "MPNet, whatever it pads with": (tr.MPNetModel, tr.MPNetConfig(**TINY, pad_token_id=7), 2),
    "ESM": (
        tr.EsmModel,
        tr.EsmConfig(**TINY, pad_token_id=1, position_embedding_type="absolute", mask_token_id=2),
        2,
    ),
    "BERT": (tr.BertModel, tr.BertConfig(**TINY, pad_token_id=0), 0),
    "ELECTRA": (tr.ElectraModel, tr.ElectraConfig(**TINY, pad_token_id=3), 0),
    "GPT-2": (tr.GPT2Model, tr.GPT2Config(**GPT2, pad_token_id=None), 0),
    "GPT-2, padding near the end": (tr.GPT2Model, tr.GPT2Config(**GPT2, pad_token_id=22), 0),
    "GPT-2, padding beyond": (tr.GPT2Model, tr.GPT2Config(**GPT2, pad_token_id=39), 0),
    "OPT, padding near the end": (tr.OPTModel, tr.OPTConfig(**OPT, pad_token_id=20), 0),
}  # fmt: skip


def fits(model, length):
    """Whether the model runs on a text of `length` tokens, none of which is padding."""
    try:
        model(input_ids=torch.full((1, length), 30))
    except (IndexError, RuntimeError):
        return False
    return True


@pytest.mark.parametrize("name", TABLES)
def test_the_model_takes_so_many_tokens_and_not_one_more(name):
    kind, config, lost = TABLES[name]
    model = kind(config).eval()
    longest = positions(config, model)
    assert longest == TABLE - lost
    assert fits(model, longest)
    assert not fits(model, longest + 1)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (tr.LlamaModel, tr.LlamaConfig(**TINY, pad_token_id=22)),
        (tr.Phi3Model, tr.Phi3Config(**TINY, pad_token_id=32)),
        (tr.MarianModel, tr.MarianConfig(**PAIR, pad_token_id=21)),
        (tr.BartModel, tr.BartConfig(**PAIR, pad_token_id=21)),
        (tr.LxmertModel, tr.LxmertConfig(vocab_size=40, hidden_size=24, intermediate_size=8,
            num_attention_heads=2, max_position_embeddings=TABLE)),
    ],
    ids=["Llama", "Phi-3", "Marian", "BART", "LXMERT"],
)  # fmt: skip
def test_a_padding_token_takes_no_place_where_positions_begin_at_0(kind, config):
    with torch.device("meta"):
        assert positions(config, kind(config)) == TABLE


def test_a_model_without_a_table_is_not_bounded():
    config = tr.T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=40)
    with torch.device("meta"):
        assert positions(config, tr.T5Model(config)) is None
