"""Exported graphs under ONNX Runtime: the model's own generate(), its tokens, and what is refused."""

import json
import shutil

import pytest
import torch
from transformers import AutoTokenizer, BartConfig, BertConfig, ModernBertConfig, RobertaConfig, T5Config

from modeling_yan import Lexicon, YanForConditionalGeneration, YanTextGenerationPipeline, restore
from modeling_yan.data.tokenization import train_tokenizer

from ..helpers import TEXTS, WITH_BLANKS, YAN_E2E, ran, refused, seeded, source_batch, tiny_model

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from modeling_yan.serving.export import export  # noqa: E402
from modeling_yan.serving.onnx_runtime import YanOrtForConditionalGeneration  # noqa: E402

SCRIPT = "conversion/export_yan.py"
# Graphs grow with layers, and the time that exporting takes with them: few layers of each kind are enough.
SIZES = {"encoder_layers": 1, "flow_layers": 2, "cross_attention_layers": [1], "max_position_embeddings": 32}
WIDTH = {"hidden_size": 16, "intermediate_size": 24, "pad_token_id": 0}
HOSTED = {
    "bert": BertConfig(max_position_embeddings=32, num_hidden_layers=1, num_attention_heads=2, **WIDTH),
    "roberta": RobertaConfig(max_position_embeddings=33, num_hidden_layers=1, num_attention_heads=2, **WIDTH),
    "modernbert": ModernBertConfig(num_hidden_layers=1, num_attention_heads=2, **WIDTH),
    "bart": BartConfig(
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        pad_token_id=0,
    ),
    "t5": T5Config(d_model=16, d_kv=8, d_ff=24, num_layers=1, num_decoder_layers=1, num_heads=2, pad_token_id=0),
}
POINTED = {"reverse_positions": True, "copy_mechanism": True}
MODELS = {
    "attention": {"encoder_mixer": "conv_attention", "flow_mixer": "conv_attention", **POINTED},
    "mamba": {"encoder_mixer": "mamba", "flow_mixer": "mamba"},
    **{name: {"encoder_config": config.to_dict()} for name, config in HOSTED.items()},
}
# One export shows a hosted encoder, a single expert, a canvas of the source's tokens and predicted data, the other
# three experts, positions from both ends that point at the source, and velocities.
MODELS["bert"] |= {**WITH_BLANKS, "num_experts": 1, "prediction_type": "data", "length_head": "source"}
MODELS["joint flow"] = {
    "encoder_config": HOSTED["bert"].to_dict(),
    "flow_from_encoder": True,
    "flow_layers": 1,
    "cross_attention_layers": [0],
}
SLOW = [
    pytest.param(name, marks=pytest.mark.slow)
    for name in ("joint flow", "mamba", "roberta", "modernbert", "bart", "t5")
]


@pytest.fixture(scope="module", params=["attention", "bert", *SLOW])
def exported(request, tmp_path_factory):
    """A model of two steps, and the graphs of it in one and in two."""
    tokenizer = train_tokenizer(TEXTS * 20, 300, 32)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos", "mask")}
    model = tiny_model(vocab_size=len(tokenizer), **ids, **{**SIZES, **MODELS[request.param]})
    model.generation_config.num_inference_steps = 2
    folder = tmp_path_factory.mktemp("models")
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    ran(SCRIPT, cwd=folder, model="model", output_dir="onnx")
    assert "is not an empty folder" in refused(SCRIPT, cwd=folder, model="model", output_dir="onnx")
    return model, YanOrtForConditionalGeneration.from_pretrained(folder / "onnx")


@pytest.fixture(scope="module")
def rounded(tmp_path_factory):
    """The smallest model, and a folder with graphs of it in one step, their weights rounded to int8."""
    model, folder = tiny_model(**SIZES), tmp_path_factory.mktemp("graphs")
    export(model, folder, steps=[1], int8=True)
    return model, folder


@pytest.fixture
def graphs(rounded):
    """A folder with graphs in one step."""
    return rounded[1]


def test_documents_are_restored_as_by_the_model(exported):
    model, graphs = exported
    tokenizer, text = train_tokenizer(TEXTS * 20, 300, 32), "\n\n".join(TEXTS)
    free = {"max_edit": None, "max_word_edit": None, "keep": None}
    expected, found = (restore(system, tokenizer, text, **free) for system in (model, graphs))
    assert found.text == expected.text
    # A canvas with blanks has room for shorter windows.
    assert len(found.pieces) >= len(TEXTS)
    for one, other in zip(found.pieces, expected.pieces, strict=True):
        assert one.confidence == pytest.approx(other.confidence, rel=1e-3)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_inference_steps": 1, "max_new_tokens": 7},
        {"expert_selection": "argmax", "num_length_candidates": 4},
        {"num_candidates": 3, "num_return_sequences": 2, "prior_temperature": 2.0},
        {"target_lengths": [9, 16, 1, 3]},
        {"length_mode": "canvas", "eos_token_id": None, "max_new_tokens": 10},
    ],
    ids=str,
)
def test_graphs_write_the_models_tokens(exported, side, options):
    model, graphs = exported
    ids, mask = source_batch((13, 1, 6, 2), side=side)
    options = {**options, "return_dict_in_generate": True}
    expected = model.generate(ids, mask, generator=seeded(1), **options)
    found = graphs.generate(ids, mask, generator=seeded(1), **options)
    assert torch.equal(found.sequences, expected.sequences)
    assert torch.equal(found.target_lengths, expected.target_lengths)
    assert found.num_evaluations == expected.num_evaluations
    torch.testing.assert_close(found.sequences_scores, expected.sequences_scores, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(found.token_scores, expected.token_scores, atol=1e-4, rtol=1e-3)


def test_noise_that_is_given_leads_to_the_models_tokens(exported):
    model, graphs = exported
    ids, mask = source_batch((13, 1, 6, 2))
    noise = torch.randn(4, 32, 16, generator=seeded(1))
    expected = model.generate(ids, mask, prior_noise=noise, generator=seeded(2))
    assert torch.equal(graphs.generate(ids, mask, prior_noise=noise, generator=seeded(2)), expected)


def test_neither_batch_mates_nor_padding_change_a_row(exported):
    _, graphs = exported
    ids, mask = source_batch((13, 1, 6, 2))
    together = graphs.generate(ids, mask, generator=seeded(1))
    for row, length in enumerate(mask.sum(-1).tolist()):
        alone = graphs.generate(ids[row : row + 1, :length], generator=seeded(1))
        assert torch.equal(together[row, : alone.shape[1]], alone[0])
        assert bool((together[row, alone.shape[1] :] == graphs.config.pad_token_id).all())


def test_the_pipeline_takes_graphs_in_the_place_of_the_model(exported, tmp_path):
    model, graphs = exported
    tokenizer = AutoTokenizer.from_pretrained(graphs.folder)
    answers = [
        YanTextGenerationPipeline(model=who, tokenizer=tokenizer, device="cpu")(
            TEXTS, batch_size=3, generator=seeded(), max_new_tokens=8
        )
        for who in (model, graphs)
    ]
    assert answers[0] == answers[1]


def test_saved_graphs_are_what_they_were(exported, tmp_path):
    model, graphs = exported
    graphs.save_pretrained(tmp_path / "copy")
    again = YanOrtForConditionalGeneration.from_pretrained(tmp_path / "copy")
    ids, mask = source_batch((13, 1))
    assert torch.equal(again.generate(ids, mask, generator=seeded()), model.generate(ids, mask, generator=seeded()))


def test_a_lexicon_goes_along_with_the_graphs(tmp_path):
    model = tiny_model(**SIZES)
    model.save_pretrained(tmp_path / "model")
    Lexicon({"station": 7}).save_pretrained(tmp_path / "model")
    export(type(model).from_pretrained(tmp_path / "model"), tmp_path / "graphs", steps=[1])
    graphs = YanOrtForConditionalGeneration.from_pretrained(tmp_path / "graphs")
    graphs.save_pretrained(tmp_path / "copy")
    for holder in (graphs, YanOrtForConditionalGeneration.from_pretrained(tmp_path / "copy")):
        assert Lexicon.of_model(holder).counts == {"station": 7}


@pytest.mark.parametrize("exported", ["attention"], indirect=True)
def test_a_graph_holds_fused_attention_and_each_tokens_own_expert(exported):
    onnx = pytest.importorskip("onnx")
    _, graphs = exported
    operators = [node.op_type for node in onnx.load(graphs.folder / "canvas_2_steps.onnx").graph.node]
    # Two layers in two steps: attention to the canvas, and in one of them to the source.
    assert operators.count("MultiHeadAttention") == 2 * 3
    assert operators.count("Conv") == 2 * 2
    # Which tokens are an expert's is found once.
    assert operators.count("NonZero") == 3
    assert "Softmax" not in operators


def test_int8_rounds_the_weights_of_products_and_writes_nearly_the_models_tokens(rounded):
    onnx = pytest.importorskip("onnx")
    model, folder = rounded
    operators = [node.op_type for node in onnx.load(folder / "canvas_1_step.onnx").graph.node]
    assert "MatMulInteger" in operators
    assert "MatMul" not in operators
    assert operators.count("MultiHeadAttention") == 3
    graphs = YanOrtForConditionalGeneration.from_pretrained(folder)
    ids, mask = source_batch((13, 1, 6, 2))
    options = {"num_inference_steps": 1, "target_lengths": 30, "return_dict_in_generate": True, "eos_token_id": None}
    found, expected = (m.generate(ids, mask, generator=seeded(), **options) for m in (graphs, model))
    assert (found.sequences == expected.sequences).float().mean() > 0.8
    torch.testing.assert_close(found.sequences_scores, expected.sequences_scores, atol=0.05, rtol=0.05)


# Its layers are those of the models above, and more of them.
@pytest.mark.slow
def test_the_shipped_models_graphs_write_its_texts(tmp_path):
    ran("modeling_yan/cli.py", "export", cwd=tmp_path, model=YAN_E2E, output_dir="onnx", steps=1)
    graphs = YanOrtForConditionalGeneration.from_pretrained(tmp_path / "onnx")
    model = YanForConditionalGeneration.from_pretrained(YAN_E2E, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "onnx")
    texts = ["name[Aromi], eatType[coffee shop]", "name[The Vaults], food[Japanese], area[riverside]", "name[Zizzi]"]
    source = tokenizer(texts, return_tensors="pt", padding=True)
    options = {**source, "num_inference_steps": 1, "num_candidates": 2}
    found = graphs.generate(generator=seeded(), **options)
    assert torch.equal(found, model.generate(generator=seeded(), **options))
    assert "Aromi" in tokenizer.decode(found[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_inference_steps": 3}, r"num_inference_steps=3 has no graph.*\[1\]; export the model with --steps 3"),
        ({"solver": "heun"}, "solver='heun': the graphs were exported with 'euler'"),
        ({"time_shift": 2.0}, "time_shift=2.0: the graphs were exported with 1.0"),
        ({"do_sample": True}, "do_sample=True cannot be honoured"),
        ({"min_new_tokens": 3}, "min_new_tokens=3 cannot be honoured"),
        ({"output_trajectory": True}, "output_trajectory=True cannot be honoured"),
        ({"compile": True}, "compile=True is for the torch model"),
        ({"max_new_tokens": 33}, "max_new_tokens / max_length=33 must be between 1 and max_position_embeddings=32"),
        ({"target_lengths": 33}, "target_lengths holds 33 to 33"),
        ({"steps": 1}, r"unknown arguments \['steps'\]"),
        ({"inputs_embeds": torch.zeros(1, 3, 16), "input_ids": None}, "inputs_embeds: graphs begin at token ids"),
        ({"encoder_outputs": (torch.zeros(1, 3, 16),), "input_ids": None}, "encoder_outputs: graphs begin at token"),
    ],
    ids=str,
)
def test_what_the_graphs_cannot_do_is_refused(graphs, options, message):
    model = YanOrtForConditionalGeneration.from_pretrained(graphs)
    with pytest.raises(ValueError, match=message):
        model.generate(**{"input_ids": torch.full((1, 3), 5), "num_inference_steps": 1, **options})


def test_a_source_longer_than_the_positions_is_refused(graphs):
    model = YanOrtForConditionalGeneration.from_pretrained(graphs)
    with pytest.raises(ValueError, match="input_ids has 33 tokens, more than max_position_embeddings=32"):
        model.generate(torch.full((1, 33), 5), num_inference_steps=1)


def test_drafts_are_refused_and_final_ids_streamed(graphs):
    model = YanOrtForConditionalGeneration.from_pretrained(graphs)

    class Streamer:
        def __init__(self):
            self.ids = []

        def put(self, value):
            self.ids.append(value)

        def end(self):
            self.ids.append("end")

    streamer = Streamer()
    options = {"input_ids": torch.full((1, 3), 5), "num_inference_steps": 1, "streamer": streamer}
    written = model.generate(generator=seeded(), **options)
    assert torch.equal(streamer.ids[0], written[0])
    assert streamer.ids[1:] == ["end"]
    streamer.put_draft = streamer.put
    with pytest.raises(ValueError, match="put_draft needs each step's state"):
        model.generate(generator=seeded(), **options)


def changed(folder, name, **fields):
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**content, **fields}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "yan_export.json").unlink(), r"holds no yan_export\.json, so no graphs"),
        (lambda folder: (folder / "yan_export.json").write_text("{"), "cannot be read"),
        (lambda folder: changed(folder, "yan_export.json", version=1), "graphs of version 1, this package runs"),
        (lambda folder: changed(folder, "yan_export.json", more=1), "cannot be read.*more"),
        (lambda folder: changed(folder, "yan_export.json", format="pt2"), "was exported as pt2"),
        (lambda folder: changed(folder, "config.json", num_experts=4), "not that of the model whose graphs"),
        (lambda folder: (folder / "encoder.onnx").unlink(), r"lacks encoder\.onnx"),
        (lambda folder: (folder / "encoder.onnx").write_bytes(b"other"), r"encoder\.onnx.*is not the graph"),
    ],
)
def test_other_folders_are_refused(graphs, tmp_path, damage, message):
    folder = tmp_path / "graphs"
    shutil.copytree(graphs, folder)
    damage(folder)
    with pytest.raises(ValueError, match=message):
        YanOrtForConditionalGeneration.from_pretrained(folder)


def test_a_provider_or_device_that_is_not_there_is_refused(graphs):
    with pytest.raises(ValueError, match="provider='NoSuchProvider' is not in this onnxruntime, which has"):
        YanOrtForConditionalGeneration.from_pretrained(graphs, provider="NoSuchProvider")
    with pytest.raises(ValueError, match="device=cuda: graphs take inputs on the CPU"):
        YanOrtForConditionalGeneration.from_pretrained(graphs).to("cuda")


def test_session_options_are_the_callers(graphs):
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    model = YanOrtForConditionalGeneration.from_pretrained(graphs, session_options=options)
    assert model.generate(torch.full((1, 3), 5), num_inference_steps=1).shape[0] == 1
