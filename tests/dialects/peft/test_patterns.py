"""A pattern fits what PEFT says it fits; one that could hang is refused, and quickly."""

from contextlib import nullcontext, suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.utils.other import get_pattern_key
from whole_run.steps import at_most

from lora_export.dialects.peft import patterns
from lora_export.dialects.peft.expressions import codes, parser
from lora_export.dialects.peft.patterns import Patterns, compile_pattern
from lora_export.errors import InputError, LimitError

PARTS = ["q_proj", "k_proj", "layers", "0", "1", "10", "model", "self_attn", "proj"]
PIECES = [
    *PARTS,
    r"\d+",
    ".*",
    r"\.",
    ".",
    "|",
    "(0|1)",
    "(?:q|k)_proj",
    "[01]",
    "^",
    "$",
    "+",
    r"\w",
]
MODULES = st.lists(st.sampled_from(PARTS), min_size=1, max_size=5).map(".".join)
TEXTS = st.lists(st.sampled_from(PIECES), min_size=1, max_size=6).map("".join)


def accepted(texts):
    """The patterns that are taken, in order."""
    for text in texts:
        with suppress(InputError, LimitError):
            yield compile_pattern(text, "a test"), text


@settings(max_examples=300)
@given(st.lists(TEXTS, max_size=5, unique=True), MODULES)
def test_the_first_fit_is_the_key_that_peft_takes(texts, module):
    patterns = list(accepted(texts))
    key = get_pattern_key([text for _, text in patterns], module)
    values = {text: place for place, (_, text) in enumerate(patterns)}
    wanted = values.get(key, -1)
    numbered = [(pattern, values[text]) for pattern, text in patterns]
    assert Patterns(numbered).first_fit(module, -1) == wanted


def test_a_pattern_for_each_of_many_modules_takes_no_time():
    modules = [f"model.layers.{number}.q_proj" for number in range(1000)]
    pairs = [(compile_pattern(module, "a test"), place) for place, module in enumerate(modules)]
    with at_most(1_000_000):
        every = Patterns(pairs)
        assert [every.first_fit(module, -1) for module in modules] == [*range(1000)]


def test_many_slow_patterns_on_many_modules_are_refused(monkeypatch):
    monkeypatch.setattr(patterns, "MAX_WORK", 100_000)
    slow = Patterns([(compile_pattern(f".*.*{n}x", "a test"), n) for n in range(100)])
    with pytest.raises(LimitError, match=r"its 100 patterns may take for ever to match"):
        slow.first_fit("model.layers.0.q_proj", -1)
    alike = [f"{'.' * n}{'a' * (200 - n)}" for n in range(200)]
    plain = Patterns([(compile_pattern(text, "a test"), 0) for text in alike])
    with pytest.raises(LimitError, match=r"its 200 patterns may take for ever to match"):
        plain.first_fit("b" * 200, -1)


@pytest.mark.parametrize(
    ("text", "module", "fits"),
    [
        ("q_proj", "model.layers.0.q_proj", True),
        ("q_proj", "model.layers.0.xq_proj", False),  # a component, not an ending
        ("0.q_proj", "model.layers.10.q_proj", False),
        (r"layers\.(0|1|2)\..*q_proj", "model.layers.1.self_attn.q_proj", True),
        (r"layers\.(0|1|2)\..*q_proj", "model.layers.3.self_attn.q_proj", False),
        ("^model.layers.0.q_proj", "model.layers.0.q_proj", True),
        ("^layers.0.q_proj", "model.layers.0.q_proj", False),
        ("q_proj|k_proj", "model.k_proj", True),
        ("q_proj$", "model.q_proj", True),
        ("", "model.", True),
        ("0.q_proj", "model.0xq_proj", True),  # a dot fits any letter
        ("q_proj", "model.q_proj\n", True),
        ("0.q_proj", "0\nq_proj", False),
        ("[[]", "[", True),
    ],
)
def test_fits(text, module, fits):
    pattern = compile_pattern(text, "a test")
    assert (
        pattern.fits(module) is Patterns([(pattern, True)]).first_fit(module, default=False) is fits
    )
    assert (get_pattern_key([text], module) == text) is fits


@pytest.mark.parametrize(
    "text",
    [
        "(a+)+",
        "(a*)*",
        "(.*)*b",
        "((a|a)*)b",
        r"(a*|\\)*b",
        "(a|aa)(a|aa)" * 20 + "b",
        "a?" * 60 + "a" * 60,
        ".*.*.*.*.*.*x",
        "(a{1,60}){1,60}b",
        "(a+){30}b",
        r"(a)\1\1",
        r"(?P<x>a+)(?P=x)b",
        "(a)(?(1)a+|b)",
        "x" * 1001 + "+",
    ],
)
def test_a_pattern_that_may_hang_is_refused_at_once(text):
    with at_most(50_000), pytest.raises(LimitError, match="may take for ever"):
        compile_pattern(text, "a test").fits("a" * 200)


@pytest.mark.parametrize("text", [".*.*x", r".*\.layers\.\d+\.x", "(a|aa)(a|aa)(a|aa)b", "a?a?a?b"])
def test_what_is_taken_is_quick_on_every_name(text):
    """No more ways are tried than the pattern is said to have."""
    pattern = compile_pattern(text, "a test")
    tree = parser.parse(pattern.expression.pattern)
    for size in (10, 100, 1000, 100_000):
        with suppress(LimitError) if size >= 1000 else nullcontext():
            found, trials = pattern.fits("a" * size), Trials("a" * size)
            assert trials.fits(tree) is found
            assert trials.count <= patterns.MAX_STEPS


class Trials:
    """Tries one way after the other, as Python's matcher does, and counts where it comes to."""

    def __init__(self, name):
        self.name, self.count = name, 0

    def fits(self, tree):
        return any(True for _ in self.ends([*tree], 0))

    def ends(self, parts, place):
        """Yield the ends of all ways to match the parts from a place of the name on."""
        self.count += 1
        if not parts:
            yield place
            return
        for end in self.of(*parts[0], place):
            yield from self.ends(parts[1:], end)

    def of(self, operation, value, place):
        if operation is codes.AT:
            yield from [place] if place == len(self.name) else []
        elif operation is codes.BRANCH:
            for alternative in value[1]:
                yield from self.ends([*alternative], place)
        elif operation is codes.SUBPATTERN:
            yield from self.ends([*value[3]], place)
        elif operation is codes.MAX_REPEAT:
            yield from self.repeated(*value, place)
        elif place < len(self.name) and self.takes(operation, value, self.name[place]):
            yield place + 1

    def repeated(self, least, most, tree, place):
        """Of the longest repetition first. The repeated part takes one letter, or is optional."""
        ends = [place]
        while len(ends) <= most and (more := next(self.ends([*tree], ends[-1]), None)) is not None:
            ends.append(more)
        yield from reversed(ends[least:])

    @staticmethod
    def takes(operation, value, letter):
        if operation is codes.IN:
            return letter.isdecimal()
        return operation is codes.ANY or chr(value) == letter


@pytest.mark.parametrize("text", ["(", "[", "*", "a**", "(?<a", "\\", "(?i)a)", "a{99999999999}"])
def test_what_is_no_expression_is_refused(text):
    with pytest.raises((InputError, LimitError)):
        compile_pattern(text, "a test")


@given(st.text(max_size=40))
def test_no_text_is_a_traceback(text):
    for pattern, _ in accepted([text]):
        pattern.fits("model.layers.0.q_proj")
