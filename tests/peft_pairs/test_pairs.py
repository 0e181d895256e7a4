"""For random pairs of configuration and file the merge is PEFT's bit for bit, or is refused.

2,000 pairs: 200 as PEFT saves them, each of which must merge, and nine changed ones of each. The
slow run tries all of them, the default run those of the right pairs that its printed seed draws.
Bits of PEFT are taken only where PEFT has loaded what the file holds, or ignores it for a reason
that this package must know as well.
"""

import random
from collections import Counter
from copy import deepcopy

import pytest
import torch
from whole_run.sampling import is_drawn

from lora_export.errors import LoraExportError
from peft_pairs import oracles
from peft_pairs.changes import change, factors
from peft_pairs.pairs import PREFIX, right_pair

RUNS, EACH, CHANGED = 10, 20, 9

# PEFT does not load these configurations, and what they say beside the file changes nothing in it.
HARMLESS = (
    "When `layers_pattern` is specified, `layers_to_transform` must also be specified",
    "`layers_to_transform` cannot be used when `target_modules` is a str",
    "`layers_pattern` cannot be used when `target_modules` is a str",
    "not supported, currently only",  # another target that the tuner has no layer for
    "is not supported. Currently, only",
    "Trying to wrap an `nn.Parameter` of layer",
    "lora.ParamWrapper does not work with",
    "`feedforward_modules` should be a subset of `target_modules`",
    "Please specify `feedforward_modules`",  # which the vectors' shapes tell
    "original_module.bias: copying a param",  # what a trained module has replaced
    "Invalid or unsupported variant combination",  # of such a parameter
    "Unknown initialization",  # of a layer that has fewer of them than others
)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the tensors are too small for two
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("run", range(RUNS))
def test_a_drawn_merge_is_pefts_or_is_refused(run, tmp_path):
    check([seed for seed in seeds(run) if is_drawn(f"pair {seed}")], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("run", range(RUNS))
def test_a_merge_is_pefts_or_is_refused(run, tmp_path):
    counts = check(seeds(run), tmp_path)
    assert min(counts["merged"], counts["refused"]) > EACH * CHANGED // 5, counts


def seeds(run):
    return range(run * EACH, (run + 1) * EACH)


def check(seeds, tmp_path):
    """Merge the right pair of every seed, and what is made of it by changes; count the latter."""
    counts = Counter()
    for seed in seeds:
        right = right_pair(random.Random(seed))
        merged = outcome(right, tmp_path, f"seed {seed}", None)
        assert isinstance(merged, dict), f"seed {seed} is refused: {merged}"
        for number in range(CHANGED):
            pair, draw = deepcopy(right), random.Random(seed * 100 + number)
            change(draw, pair)
            told = f"seed {seed}, change {number}: {pair.changes}, {pair.config}"
            found = outcome(pair, tmp_path, told, merged)
            counts["merged" if isinstance(found, dict) else "refused"] += 1
    return counts


def outcome(pair, folder, told, before):
    """What the merge is after all checks, or the words of the refusal.

    before: what the pair was merged to before it was changed.
    """
    if not pair.tensors:
        return "an empty file"
    base, lora = oracles.write(pair, folder)
    try:
        ours = oracles.by_us(base, lora)
    except LoraExportError as error:
        return str(error)
    theirs, note = oracles.by_peft(pair, lora)
    if theirs is None and before is not None and any(text in note for text in HARMLESS):
        if len(pair.changes) == 1:
            assert not oracles.differing(ours, before), f"{told}: PEFT says {note}"
        return ours
    assert theirs is not None, f"{told}: PEFT cannot load it ({note}), and it was merged"
    differing = [name for name in oracles.differing(ours, theirs) if not is_noise(pair, name)]
    assert not differing, f"{told}: {differing} differ, PEFT ignored {note}"
    return ours


def is_noise(pair, name):
    """A module without factors in the file, of which PEFT's new magnitude rounds the weight."""
    module = PREFIX + name.rpartition(".")[0]
    held = any(key.startswith(f"{module}.") for key in factors(pair))
    return bool(pair.config.get("use_dora")) and not held and name.endswith(".weight")
