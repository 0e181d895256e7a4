"""Show that the adapter's effect survives the merge: accuracy before, with it live, and after."""

import argparse
from pathlib import Path

import loralib as lora
import torch
from data import plain, turned
from model import DigitReader
from safetensors.torch import load_file

HERE = Path(__file__).parent
TASKS = (plain()[1], turned()[1])  # unseen digits of both kinds


def main() -> None:
    """Score every form of the model on the same unseen digits, and print one row for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--merged", type=Path, help="merged safetensors file")
    parser.add_argument("--onnx", type=Path, help="merged ONNX file")
    options = parser.parse_args()

    forms = {"base": base(), "unmerged": unmerged()}
    if options.merged:
        forms["merged"] = plain_network(options.merged)
    answers = {name: predict(model) for name, model in forms.items()}
    if options.onnx:
        answers["onnx"] = predict_onnx(options.onnx)
    show(answers)


def plain_network(weights: Path) -> torch.nn.Module:
    """Load a file that has the base's names, and no others, into the network without adapters."""
    model = DigitReader(adapted=False)
    model.load_state_dict(load_file(weights))
    return model.eval()


def base() -> torch.nn.Module:
    """Return the network before any adapter."""
    return plain_network(HERE / "base.safetensors")


def unmerged() -> torch.nn.Module:
    """Return loralib's own network with its low-rank branches live."""
    model = DigitReader()
    state = load_file(HERE / "base.safetensors") | load_file(HERE / "lora.safetensors")
    model.load_state_dict(state)
    for module in model.modules():
        if isinstance(module, lora.LoRALayer):
            module.merge_weights = False  # else eval() merges
    return model.eval()


def predict(model: torch.nn.Module) -> list[torch.Tensor]:
    """Read the test digits of each task with torch."""
    with torch.inference_mode():
        return [model(task.images).argmax(1) for task in TASKS]


def predict_onnx(path: Path) -> list[torch.Tensor]:
    """Read the test digits of each task with ONNX Runtime."""
    import onnxruntime  # only this row needs it

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    scores = [session.run(None, {"image": task.images.numpy()})[0] for task in TASKS]
    return [torch.from_numpy(score).argmax(1) for score in scores]


def show(answers: dict[str, list[torch.Tensor]]) -> None:
    """Print accuracy on both tasks, and how many answers differ from the live adapter's."""
    print(f"{'':10}{'plain':>7}{'turned':>8}   answers unlike unmerged's")
    truth = torch.cat([task.labels for task in TASKS])
    live = torch.cat(answers["unmerged"])
    for name, given in answers.items():
        scores = [
            (answer == task.labels).float().mean().item()
            for answer, task in zip(given, TASKS, strict=True)
        ]
        differ = int((torch.cat(given) != live).sum())
        print(f"{name:10}{scores[0]:7.1%}{scores[1]:8.1%}   {differ} of {len(truth)}")


if __name__ == "__main__":
    main()
