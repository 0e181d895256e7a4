"""Facts from options and from an --hparams file."""

from pathlib import Path

import pytest

from lora_export.errors import InputError, UsageError
from lora_export.planning.facts.user_facts import (
    FactTable,
    agreed,
    parse_enable_lora,
    read_hparams,
)
from lora_export.records import Facts

TOML = """
alpha = 16
fan_in_fan_out = true

[[module]]
match = "*.c_attn"
alpha = 32
enable_lora = [true, false, true]

[[module]]
match = "*.0.*"
kind = "linear"
fan_in_fan_out = false
"""
JSON = '{"alpha": 16, "module": [{"match": "*.c_attn", "alpha": 32, "enable_lora": [1, 0, 1]}]}'


def written(folder: Path, text: str) -> Path:
    path = folder / "hparams"
    path.write_text(text)
    return path


def test_the_first_match_wins_over_the_top(tmp_path):
    top, patterns = read_hparams(written(tmp_path, TOML))
    table = FactTable(top, patterns)
    attention = table.of("h.0.c_attn")
    assert (attention.alpha, attention.enable_lora) == (32, (True, False, True))
    assert attention.fan_in_fan_out is True  # from the top: the first match does not say it
    assert table.of("h.0.mlp").fan_in_fan_out is False
    assert table.of("h.1.mlp").alpha == 16


def test_json_says_the_same(tmp_path):
    top, patterns = read_hparams(written(tmp_path, JSON))
    assert FactTable(top, patterns).of("h.0.c_attn").enable_lora == (True, False, True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("alpha = ", "neither TOML nor JSON"),
        ("[1, 2]", "neither TOML nor JSON"),
        ("lora_alpha = 3", "unknown key 'lora_alpha'"),
        ('alpha = "16"', "not a number"),
        ("alpha = true", "not a number"),
        ('{"alpha": 1' + 400 * "0" + "}", "not a number"),
        ("fan_in_fan_out = 1", "not true or false"),
        ("enable_lora = [2]", "not a list of true and false"),
        ("enable_lora = [false]", "one of them true"),
        ("[[module]]\nalpha = 3", "match is missing"),
        ("module = 3", "list of tables"),
        ('kind = "lin"', r"'lin' is not a kind of layer\n  -> one of: .*linear.*merged_linear"),
    ],
)
def test_mistakes_are_named(text, words, tmp_path):
    with pytest.raises(InputError, match=words):
        read_hparams(written(tmp_path, text))


CONTRADICTED = {
    "alpha = 16": (Facts(alpha=8.0), ["alpha is 16", "--alpha 8"]),
    "fan_in_fan_out = true": (Facts(fan_in_fan_out=False), ["True", "--no-fan-in-fan-out"]),
    "enable_lora = [1, 0]": (Facts(enable_lora=(True, True)), ["1,0", "--enable-lora 1,1"]),
}


@pytest.mark.parametrize("text", CONTRADICTED)
def test_an_option_that_contradicts_the_top_of_the_file_is_refused(text, tmp_path):
    options, words = CONTRADICTED[text]
    top, patterns = read_hparams(written(tmp_path, text))
    with pytest.raises(UsageError) as caught:
        FactTable.joined(options, top, patterns, {})
    assert [word for word in [*words, "hparams"] if word not in str(caught.value)] == []


def test_a_table_that_overrides_an_option_is_told(tmp_path):
    top, patterns = read_hparams(written(tmp_path, TOML))
    table = FactTable.joined(Facts(alpha=16.0, enable_lora=(True,)), top, patterns, {})
    told = table.overridden(["h.0.c_attn", "h.1.c_attn", "h.0.mlp"])
    place = f"for 2 modules from {tmp_path / 'hparams'}: [[module]] 1 overrides"
    assert told == [f"alpha=32 {place} --alpha 16", f"enable_lora=1,0,1 {place} --enable-lora 1"]


def test_a_model_that_contradicts_an_option_is_refused():
    given = Facts(alpha=8, source="the options")
    model = {"m": Facts(alpha=16, source="model.py (Linear)")}
    with pytest.raises(UsageError, match=r"16 in model\.py .* but 8 in the options"):
        FactTable(given, (), model).of("m")


def test_a_model_fills_in_what_options_leave_open():
    model = {"m": Facts(fan_in_fan_out=True, source="model.py")}
    facts = FactTable(Facts(alpha=8, source="the options"), (), model).of("m")
    assert (facts.alpha, facts.fan_in_fan_out) == (8, True)


@pytest.mark.parametrize(
    ("text", "blocks"), [("1,0,1", (True, False, True)), ("true, FALSE", (True, False))]
)
def test_enable_lora(text, blocks):
    assert parse_enable_lora(text) == blocks


@pytest.mark.parametrize("text", ["", "1;0", "2,0", "0,0"])
def test_enable_lora_mistakes(text):
    with pytest.raises(UsageError):
        parse_enable_lora(text)


@pytest.mark.parametrize("text", ["alpha = 1" + "0" * 400, '{"alpha": 1' + "0" * 400 + "}"])
def test_an_alpha_beyond_every_float_is_refused(text, tmp_path):
    with pytest.raises(InputError, match="not a number"):
        read_hparams(written(tmp_path, text))


def test_wrappers_do_not_hide_a_module():
    table = FactTable(modules={"m": Facts(alpha=16), "module.n": Facts(alpha=8)})
    assert table.of("module._orig_mod.m").alpha == 16
    assert table.of("module.n").alpha == 8


def test_a_kind_that_is_not_known_is_no_embedding():
    """A manifest may be of another version."""
    read, given = Facts(kind="spiral", source="manifest"), Facts(embeds=False, source="model")
    assert agreed("fc", read, given, "").kind == "spiral"
    assert agreed("fc", given, read, "").kind == "spiral"


def test_an_embedding_that_is_none_is_a_contradiction():
    table, plain = Facts(kind="embedding", source="manifest"), Facts(embeds=False, source="model")
    for read, given in ((table, plain), (plain, table)):
        with pytest.raises(UsageError, match="a layer that is no embedding"):
            agreed("fc", read, given, "")
