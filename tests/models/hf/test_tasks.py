"""The class of a task, and what is refused before anything is loaded."""

import pytest
import transformers

from lora_export.errors import UsageError
from lora_export.models.choose import task_warnings
from lora_export.models.hf.tasks import TASKS, check_task, class_for
from lora_export.records import Checkpoint

CLASSES = {
    ("bert", "text-classification"): "BertForSequenceClassification",
    ("bert", "token-classification"): "BertForTokenClassification",
    ("bert", "question-answering"): "BertForQuestionAnswering",
    ("bert", "fill-mask"): "BertForMaskedLM",
    ("bert", "feature-extraction"): "BertModel",
    ("funnel", "feature-extraction"): "FunnelModel",
    ("llama", "text-generation"): "LlamaForCausalLM",
    ("t5", "text2text-generation"): "T5ForConditionalGeneration",
    ("vit", "image-classification"): "ViTForImageClassification",
    ("clip", "zero-shot-image-classification"): "CLIPModel",
    ("llava", "image-text-to-text"): "LlavaForConditionalGeneration",
    ("wav2vec2", "audio-classification"): "Wav2Vec2ForSequenceClassification",
    ("wav2vec2", "automatic-speech-recognition"): "Wav2Vec2ForCTC",
    ("whisper", "automatic-speech-recognition"): "WhisperForConditionalGeneration",
}


@pytest.mark.parametrize(("asked", "name"), CLASSES.items())
def test_the_class_of_a_task(asked, name):
    kind, task = asked
    assert class_for({"model_type": kind}, task) == name
    assert hasattr(transformers, name)


def test_every_task_has_a_case():
    assert {task for _, task in CLASSES} == set(TASKS)


def test_a_task_that_is_none():
    with pytest.raises(UsageError, match="'text-clasification' is no task") as caught:
        check_task("text-clasification")
    assert caught.value.problems[0].hint == "did you mean text-classification?"
    with pytest.raises(UsageError) as caught:
        check_task("sing")
    assert all(task in caught.value.problems[0].hint for task in TASKS)


def test_a_model_that_nobody_knows():
    with pytest.raises(UsageError, match="'grandma'") as caught:
        class_for({"model_type": "grandma"}, "fill-mask")
    assert "--model" in caught.value.problems[0].hint


@pytest.mark.parametrize(
    ("task", "told"),
    [
        (None, False),
        ("text-classification", False),
        ("feature-extraction", True),
    ],
)
def test_another_class_than_the_config_s_is_told(tmp_path, task, told):
    config = {"model_type": "bert", "architectures": ["BertForSequenceClassification"]}
    lines = task_warnings(Checkpoint(tmp_path, "folder", (), config=config), task)
    assert len(lines) == told
    assert all("BertModel" in one and "BertForSequenceClassification" in one for one in lines)
