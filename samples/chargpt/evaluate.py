"""Show that the adapter's effect survives the merge: loss before, with it live, and after."""

import argparse
from pathlib import Path

import loralib as lora
import torch
from data import held_out
from model import CharGPT
from safetensors.torch import load_file
from torch import nn

HERE = Path(__file__).parent
TEXTS = (held_out("english"), held_out("python"))  # windows of text no training has seen


def main() -> None:
    """Score every form of the model on the same unseen text, and print one row for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--merged", type=Path, help="merged safetensors file")
    parser.add_argument("--onnx", type=Path, help="merged ONNX file")
    options = parser.parse_args()

    forms = {"base": plain_network(HERE / "base.safetensors"), "unmerged": unmerged()}
    if options.merged:
        forms["merged"] = plain_network(options.merged)
    scores = {name: score(model) for name, model in forms.items()}
    if options.onnx:
        scores["onnx"] = score_onnx(options.onnx)
    show(scores)


def plain_network(weights: Path) -> nn.Module:
    """Load a file that has the base's names, and no others, into the network without adapters."""
    model = CharGPT(rank=0)
    state = load_file(weights)
    model.load_state_dict({"lm_head.weight": state["transformer.wte.weight"], **state})
    return model.eval()


def unmerged() -> nn.Module:
    """Return loralib's own network with its low-rank branches live."""
    model = CharGPT()
    adapter = torch.load(HERE / "lora.pt", weights_only=True)["model_state_dict"]
    state = load_file(HERE / "base.safetensors") | adapter
    model.load_state_dict({"lm_head.weight": state["transformer.wte.weight"], **state})
    for module in model.modules():
        if isinstance(module, lora.LoRALayer):
            module.merge_weights = False  # else eval() merges
    return model.eval()


def score(model: nn.Module) -> list[torch.Tensor]:
    """Score the next character everywhere in each text with torch."""
    with torch.inference_mode():
        return [model(text[:, :-1]) for text in TEXTS]


def score_onnx(path: Path) -> list[torch.Tensor]:
    """Score the next character everywhere in each text with ONNX Runtime."""
    import onnxruntime  # only this row needs it

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return [
        torch.from_numpy(session.run(None, {"input_ids": text[:, :-1].numpy()})[0])
        for text in TEXTS
    ]


def show(scores: dict[str, list[torch.Tensor]]) -> None:
    """Print the loss on both texts, and how many predictions differ from the live adapter's."""
    print(f"{'':10}{'English':>8}{'Python':>8}   predictions unlike unmerged's")
    live = torch.cat(scores["unmerged"]).argmax(-1)
    for name, given in scores.items():
        losses = [
            nn.functional.cross_entropy(each.flatten(0, 1), text[:, 1:].flatten()).item()
            for each, text in zip(given, TEXTS, strict=True)
        ]
        differ = int((torch.cat(given).argmax(-1) != live).sum())
        print(f"{name:10}{losses[0]:8.3f}{losses[1]:8.3f}   {differ} of {live.numel()}")


if __name__ == "__main__":
    main()
