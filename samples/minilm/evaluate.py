"""Show that the adapter's effect survives the merge: accuracy before, with it live, and after."""

import argparse
from pathlib import Path

import loralib as lora
import torch
from data import TEST_SENTENCES, published, reviews, tokenize
from model import Sentiment
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression

HERE = Path(__file__).parent
TRAINING, TESTING = reviews()


def main() -> None:
    """Score every form of the model on the same unseen sentences, and print one row for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--merged", type=Path, help="merged safetensors file")
    parser.add_argument("--onnx", type=Path, nargs="+", default=[], help="merged ONNX files")
    options = parser.parse_args()
    torch.set_num_threads(1)  # at this size, threads cost more than they bring

    answers = {"base": probe(), "unmerged": predict(unmerged())}
    if options.merged:
        answers["merged"] = predict(merged(options.merged))
    for path in options.onnx:
        answers[path.name] = predict_onnx(path)
    show(answers)


def probe() -> torch.Tensor:
    """Answer with a linear head on the encoder as published: what can be had without adapter."""
    encoder = Sentiment(rank=0)
    keys = encoder.load_state_dict(load_file(published("model.safetensors")), strict=False)
    assert keys.missing_keys == ["classifier.weight", "classifier.bias"]
    encoder.train(mode=False)

    def encode(sentences: list[str]) -> torch.Tensor:
        with torch.inference_mode():
            return torch.cat([encoder.pooled(*batch) for batch in tokenize(sentences)])

    head = LogisticRegression(max_iter=2000)
    head.fit(encode(TRAINING.sentences), TRAINING.labels)
    return torch.from_numpy(head.predict(encode(TESTING.sentences)))


def unmerged() -> torch.nn.Module:
    """Return loralib's own network with its low-rank branches live."""
    model: torch.nn.Module = Sentiment()
    adapter = load_file(HERE / "lora.safetensors")
    model.load_state_dict(load_file(published("model.safetensors")) | adapter)
    for module in model.modules():
        if isinstance(module, lora.LoRALayer):
            module.merge_weights = False  # else eval() merges
    return model.eval()


def merged(weights: Path) -> torch.nn.Module:
    """Load the merged file, head and all and nothing else, into the network without adapters."""
    model: torch.nn.Module = Sentiment(rank=0)
    model.load_state_dict(load_file(weights))
    return model.eval()


def predict(model: torch.nn.Module) -> torch.Tensor:
    """Judge every test sentence with torch."""
    with torch.inference_mode():
        scores = [model(*batch) for batch in tokenize(TESTING.sentences)]
    return torch.cat(scores).argmax(1)


def predict_onnx(path: Path) -> torch.Tensor:
    """Judge every test sentence with ONNX Runtime."""
    import onnxruntime  # only this row needs it

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feeds = (batch._asdict() for batch in tokenize(TESTING.sentences))
    scores = [
        session.run(None, {name: tensor.numpy() for name, tensor in feed.items()})[0]
        for feed in feeds
    ]
    return torch.cat([torch.from_numpy(each) for each in scores]).argmax(1)


def show(answers: dict[str, torch.Tensor]) -> None:
    """Print each form's accuracy, and how many of its answers differ from the live adapter's."""
    width = max(map(len, answers)) + 2
    print(f"{'':{width}}{'accuracy':>8}   answers unlike unmerged's")
    for name, given in answers.items():
        accuracy = (given == TESTING.labels).float().mean().item()
        differ = int((given != answers["unmerged"]).sum())
        print(f"{name:{width}}{accuracy:8.1%}   {differ} of {TEST_SENTENCES}")


if __name__ == "__main__":
    main()
