"""Names and side files of folders, held against the rules of the clients that load them."""

import json
from collections import Counter

import pytest

from lora_export.errors import UsageError
from lora_export.onnx_export.capture.dimensions import rename_in_file, renamed
from lora_export.onnx_export.file.save import save_model
from lora_export.onnx_export.layout.files_around import check_files_around, files_around
from lora_export.onnx_export.layout.genai_config import genai_config
from lora_export.onnx_export.layout.layouts import LAYOUTS, find_layout
from lora_export.onnx_export.precision.grids import PRECISIONS, find_precisions
from lora_export.records import InputSpec, SideFile

# transformers.js 4.3, src/utils/dtypes.js: DEFAULT_DTYPE_SUFFIX_MAPPING.
SUFFIXES = {
    "fp32": "", "fp16": "_fp16", "int8": "_int8", "uint8": "_uint8", "q8": "_quantized",
    "q4": "_q4", "q2": "_q2", "q1": "_q1", "q4f16": "_q4f16", "q2f16": "_q2f16",
    "q1f16": "_q1f16", "bnb4": "_bnb4",
}  # fmt: skip
HF, GENAI = LAYOUTS["hf"], LAYOUTS["genai"]


def test_every_precision_has_a_name_of_its_own_that_transformers_js_loads():
    names = {precision: HF.file(precision) for precision in PRECISIONS}
    assert Counter(names.values()).most_common(1)[0][1] == 1
    known = {f"onnx/model{suffix}.onnx" for suffix in SUFFIXES.values()}
    assert known >= {*names.values()}
    assert names["fp32"] == "onnx/model.onnx"
    assert names["int8"] == "onnx/model_quantized.onnx"
    assert names["int4"] == "onnx/model_q4.onnx"


def test_an_unknown_layout_and_a_precision_twice_are_refused():
    with pytest.raises(UsageError, match="no layout 'tflite'"):
        find_layout("tflite")
    with pytest.raises(UsageError, match="names a precision twice"):
        find_precisions("fp32,int8,fp32")
    with pytest.raises(UsageError, match="no precision 'int3'"):
        find_precisions("fp32,int3")
    assert [one.name for one in find_precisions("int8,fp32")] == ["int8", "fp32"]


def test_dimensions_get_the_clients_names_also_in_sums(zoo):
    graph = zoo.captured("bert").graph()
    given = {value.name: value for value in graph.graph.input}
    shape = given["attention_mask"].type.tensor_type.shape
    shape.dim[1].dim_param = "past + sequence"
    rename_in_file(graph, HF.dimensions)
    assert [dim.dim_param for dim in shape.dim] == [
        "batch_size",
        "past_sequence_length + sequence_length",
    ]
    (logits, *_) = graph.graph.output
    assert logits.type.tensor_type.shape.dim[0].dim_param == "batch_size"
    spec = InputSpec("mask", "int64", ("batch", "past + sequence", 4))
    assert renamed(spec, HF.dimensions).dims == (
        "batch_size",
        "past_sequence_length + sequence_length",
        4,
    )


def around(layout, folder, graphs, **files):
    side = [
        SideFile(f"{name}.json", None, json.dumps(text).encode()) for name, text in files.items()
    ]
    return {file.name: file for file in files_around(layout, side, folder, graphs)}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "bert"}, {"use_external_data_format": {"model.onnx": 1}}),
        (
            {"transformers.js_config": {"dtype": "fp32", "use_external_data_format": True}},
            {"dtype": "fp32", "use_external_data_format": {"model.onnx": 1}},
        ),
    ],
)
def test_a_browser_is_told_of_external_data(zoo, tmp_path, config, expected):
    case = zoo.captured("bert")
    (tmp_path / "onnx").mkdir()
    path, whole = tmp_path / "onnx/model.onnx", tmp_path / "onnx/model_q4.onnx"
    files = save_model(
        case.graph(), path, case.weights(), external_threshold=1, data_name=HF.data_name
    )
    assert [file.path for file in files] == ["model.onnx", "model.onnx_data"]
    save_model(case.graph(), whole, case.weights())
    made = around(HF, tmp_path, ["onnx/model.onnx", "onnx/model_q4.onnx"], config=config)
    written = json.loads(made["config.json"].content)
    assert written == {**config, "transformers.js_config": expected}
    assert made["config.json"].edits


def test_without_external_data_the_config_keeps_its_bytes(zoo, tmp_path):
    case = zoo.captured("bert")
    (tmp_path / "onnx").mkdir()
    save_model(case.graph(), tmp_path / "onnx/model.onnx", case.weights())
    graphs = ["onnx/model.onnx"]
    plain = around(HF, tmp_path, graphs, config={"model_type": "bert"})["config.json"]
    assert plain.content == b'{"model_type": "bert"}'
    stale = {"transformers.js_config": {"use_external_data_format": True}}
    made = around(HF, tmp_path, graphs, config=stale)["config.json"]
    assert json.loads(made.content) == {"transformers.js_config": {"use_external_data_format": {}}}


def decoder(*inputs):
    past = [
        {"name": f"past_key_values.{layer}.{part}", "dims": ["batch", 2, "past", 16]}
        for layer in range(3)
        for part in ("key", "value")
    ]
    named = [{"name": name, "dims": ["batch", "sequence"]} for name in inputs]
    outputs = [{"name": "logits", "dims": ["batch", "sequence", 101]}]
    return {"inputs": [*named, *past], "outputs": outputs}


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        (
            {"n_positions": 64, "n_head": 4, "n_embd": 32, "eos_token_id": 3, "bos_token_id": 1},
            {},
            {"eos_token_id": 3, "pad_token_id": 3, "bos_token_id": 1, "context_length": 64},
        ),
        (
            {"text_config": {"max_position_embeddings": 128, "eos_token_id": 3}},
            {"eos_token_id": [2, 7], "pad_token_id": None, "top_k": 5},
            {"eos_token_id": [2, 7], "pad_token_id": 2, "context_length": 128},
        ),
        (
            {"n_ctx": 32, "eos_token_id": 4, "text_config": {"eos_token_id": None}},
            {},
            {"eos_token_id": 4, "context_length": 32},
        ),
    ],
)
def test_genai_config_takes_sizes_from_the_graph_and_tokens_from_the_model(
    config, generation, expected
):
    made = genai_config(decoder("input_ids", "attention_mask"), "m.onnx", config, generation)
    model, search = made["model"], made["search"]
    assert {key: model.get(key) for key in expected} == expected
    assert (model["type"], model["vocab_size"]) == ("decoder", 101)
    part = model["decoder"]
    assert part["filename"] == "m.onnx"
    sizes = ("num_hidden_layers", "num_key_value_heads", "head_size")
    assert [part[name] for name in sizes] == [3, 2, 16]
    assert "position_ids" not in part["inputs"]
    assert search == {
        **{key: value for key, value in generation.items() if key == "top_k"},
        "max_length": expected["context_length"],
        "past_present_share_buffer": False,
    }


@pytest.mark.parametrize("end", [None, []])
def test_a_model_without_an_end_is_refused_before_it_is_made(end):
    side = [SideFile("config.json", None, json.dumps({"eos_token_id": end}).encode())]
    with pytest.raises(UsageError, match="no eos_token_id"):
        check_files_around(GENAI, side)
    check_files_around(HF, side)
    check_files_around(GENAI, [SideFile("config.json", None, b'{"eos_token_id": 3}')])


def test_a_graph_without_its_past_has_no_genai_config():
    graph = {"inputs": [{"name": "input_ids", "dims": ["batch", "sequence"]}], "outputs": []}
    with pytest.raises(UsageError, match="take and give their past"):
        genai_config(graph, "model.onnx", {}, {})
