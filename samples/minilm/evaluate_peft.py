"""Show that each adapter's effect survives the merge: accuracy before, with it live, and after."""

import argparse
from pathlib import Path

import torch
from data import TEST_SENTENCES, Batch, reviews, tokenize
from peft_forms import FORMS, Network, load, scores, unmerged

HERE = Path(__file__).parent
WIDTH = 19


def main() -> None:
    """Score the base, and each form unmerged and merged, on the same unseen sentences."""
    parser = argparse.ArgumentParser(description=__doc__)
    for form in FORMS:
        help_text = "what was merged from it: a folder, ONNX files"
        parser.add_argument(f"--{form}", type=Path, nargs="+", default=[], help=help_text)
    options = parser.parse_args()
    torch.set_num_threads(1)  # at this size, threads cost more than they bring

    _, testing = reviews()
    batches = tokenize(testing.sentences)
    print(f"{'':{WIDTH}}{'accuracy':>8}   answers unlike unmerged's")
    show("base", accuracy(predict(load("lora"), batches), testing.labels))
    for form in FORMS:
        live = predict(unmerged(form, HERE / form), batches)
        show(f"{form} unmerged", accuracy(live, testing.labels))
        for path in getattr(options, form):
            is_onnx = path.suffix == ".onnx"
            answers = predict(run_by(path) if is_onnx else load(form, path), batches)
            differ = f"{int((answers != live).sum())} of {TEST_SENTENCES}"
            name = path.name if is_onnx else f"{form} merged"
            show(name, accuracy(answers, testing.labels), differ)


def run_by(path: Path) -> Network:
    """Return a call of the ONNX file, whose outputs are named as the network's."""
    import onnxruntime  # only these rows need it

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def call(**batch: torch.Tensor) -> dict[str, torch.Tensor]:
        feed = {name: tensor.numpy() for name, tensor in batch.items()}
        feed["token_type_ids"] = 0 * feed["input_ids"]  # one text: the network's own default
        arrays = session.run(names, feed)
        return dict(zip(names, map(torch.from_numpy, arrays), strict=True))

    return call


def predict(model: Network, batches: list[Batch]) -> torch.Tensor:
    """Judge every test sentence."""
    with torch.inference_mode():
        return torch.cat([scores(model, batch) for batch in batches]).argmax(1)


def accuracy(answers: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the share of right answers."""
    return (answers == labels).float().mean().item()


def show(name: str, share: float, differ: str = "") -> None:
    """Print a row of the table."""
    print(f"{name:{WIDTH}}{share:8.1%}   {differ}".rstrip())


if __name__ == "__main__":
    main()
