"""The script that a user writes to merge with PEFT: lora-export is measured against it.

It keeps the base's dtype and writes as many shards as the base has.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

ROOM = 1.1  # transformers fills shards in turn; without room it would begin one more


def main(base: str, adapter: str, output: str) -> None:
    """Merge the PEFT folder `adapter` into the folder `base`."""
    sizes = [file.stat().st_size for file in Path(base).glob("*.safetensors")]
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    merged.save_pretrained(output, max_shard_size=int(sum(sizes) / len(sizes) * ROOM))


if __name__ == "__main__":
    main(*sys.argv[1:])
