"""What models, options and pipelines are handed by mistake: each is refused by its name, or does what it says."""

import copy
import inspect
import re
from pathlib import Path

import pandas as pd
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer, CompileConfig, GenerationConfig, LogitsProcessorList, TextStreamer, pipeline
from transformers.generation import GenerationMixin

from modeling_yan import YanForConditionalGeneration, YanForMaskedLM, YanTextGenerationPipeline
from modeling_yan.generation_options_yan import (
    GENERATION_DEFAULTS,
    HONOURED_OPTIONS,
    IGNORED_ARGUMENTS,
    REFUSED_ARGUMENTS,
    REFUSED_OPTIONS,
    WITHOUT_EFFECT,
)

from .helpers import VOCAB_SIZE, source_batch, tiny_config, tiny_model

BLANKS = {"canvas_ratio": 2.0, "nll_loss_weight": 0.0, "mse_loss_weight": 0.0}
IDS, MASK = source_batch()
NAN = float("nan")
ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        # Options of left-to-right generation, each of which used to be passed over or would be wrong.
        ({"max_time": 1.0}, "max_time=1.0 cannot be honoured: a call has a fixed number of steps"),
        ({"force_words_ids": [[5]]}, "force_words_ids"),
        ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens=3 cannot be honoured"),
        ({"begin_suppress_tokens": [5]}, "begin_suppress_tokens"),
        ({"exponential_decay_length_penalty": (3, 1.1)}, "exponential_decay_length_penalty"),
        ({"output_logits": True}, "output_logits=True cannot be honoured: scores of texts come with"),
        ({"output_scores": True}, "output_scores=True cannot be honoured: scores of texts come with"),
        ({"output_attentions": True}, "output_attentions=True cannot be honoured: call the model's forward"),
        ({"early_stopping": True}, "early_stopping=True"),
        ({"length_penalty": 2.0}, "length_penalty=2.0"),
        ({"num_beams": 4}, "num_beams=4"),
        ({"repetition_penalty": 1.2}, "repetition_penalty=1.2"),
        ({"min_p": 0.1}, "min_p=0.1"),
        ({"epsilon_cutoff": 0.1}, "epsilon_cutoff=0.1"),
        # Values that are none.
        ({"num_inference_steps": 2.5}, "num_inference_steps=2.5 must be a whole number of at least 1"),
        ({"num_candidates": True}, "num_candidates=True"),
        ({"max_new_tokens": 2.5}, "max_new_tokens"),
        ({"top_k": -1, "do_sample": True}, "top_k"),
        ({"top_p": 1.5, "do_sample": True}, "top_p=1.5 must be above 0 and at most 1"),
        ({"temperature": 0.0, "do_sample": True}, "temperature"),
        ({"prior_temperature": NAN}, "prior_temperature=nan must be a finite number"),
        ({"prior_temperature": -1}, "prior_temperature=-1"),
        ({"time_shift": "late"}, "time_shift='late' must be a finite number greater than 0"),
        ({"time_shift": float("inf")}, "time_shift=inf"),
        ({"compile": "yes"}, "compile='yes' must be True or False"),
        ({"do_sample": "no"}, "do_sample='no' must be True or False"),
        ({"return_dict_in_generate": 1}, "return_dict_in_generate=1 must be True or False"),
        ({"generation_config": "fast"}, "generation_config is of type str; pass a GenerationConfig"),
        ({"generation_config": {"num_inference_steps": 2}}, "generation_config is of type dict"),
        ({"pad_token_id": 99}, f"pad_token_id=99 must be a token id below vocab_size={VOCAB_SIZE}"),
        ({"eos_token_id": [2, -5]}, "eos_token_id=-5"),
        ({"streamer": "stdout"}, "streamer is of type str"),
        ({"generator": 3}, "generator is of type int; pass a torch.Generator"),
        ({"target_lengths": "six"}, "target_lengths must be a whole number"),
        ({"target_lengths": True}, "target_lengths must be a whole number"),
        ({"prior_noise": torch.full((3, 6, 16), NAN)}, "prior_noise holds values that are not finite"),
        ({"prior_noise": [[0.0]]}, "prior_noise is of type list"),
        ({"attention_mask": [1, 1]}, "attention_mask is of type list"),
        ({"attention_mask": 2 * MASK}, "attention_mask holds values other than 0 and 1"),
        ({"attention_mask": torch.tensor([[1.0] * 7, [0.0] * 7, [1.0] * 7])}, r"rows without any token, \[1\]"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_generate_refuses_by_name(model, options, message):
    with pytest.raises(ValueError, match=message):
        model.generate(IDS, **{"attention_mask": MASK, **options})


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (IDS.tolist(), "input_ids is of type list; pass token ids as tokenizer"),
        ("a text", "input_ids is of type str"),
        ({"input_ids": IDS}, "input_ids is of type dict"),
        (IDS.float(), "input_ids has dtype torch.float32"),
        (IDS.bool(), "input_ids has dtype torch.bool"),
        (IDS + 60, "use the model's own tokenizer"),
    ],
    ids=["list", "text", "dict", "floats", "booleans", "too large"],
)
def test_sources_that_are_no_ids_are_refused(model, ids, message):
    with pytest.raises(ValueError, match=message):
        model.generate(ids)


def test_states_that_are_not_finite_are_refused(model):
    states = model.get_encoder()(IDS, MASK)
    states.last_hidden_state = states.last_hidden_state.detach().clone()
    states.last_hidden_state[0, 0, 0] = NAN
    with pytest.raises(ValueError, match="encoder_outputs holds values that are not finite"):
        model.generate(encoder_outputs=states, attention_mask=MASK)


def test_what_changes_no_text_is_accepted(model):
    def seeded():
        return torch.Generator().manual_seed(0)

    plain = model.generate(IDS, MASK, generator=seeded())
    same = model.generate(IDS, MASK, generator=seeded(), use_cache=False, tokenizer=object(), num_beams=1, top_k=50)
    assert torch.equal(plain, same)


def test_min_length_is_honoured_as_min_new_tokens(model):
    def written(**options):
        return model.generate(IDS, MASK, generator=torch.Generator().manual_seed(0), max_new_tokens=9, **options)

    assert torch.equal(written(min_length=5), written(min_new_tokens=5))
    assert all((row != 0).sum() >= 5 for row in written(min_length=5))


def test_return_sequences_of_a_generation_config_are_those_of_the_keyword():
    model = tiny_model()
    keyword = model.generate(IDS, MASK, generator=torch.Generator().manual_seed(0), num_return_sequences=2)
    model.generation_config.num_return_sequences = 2
    assert torch.equal(model.generate(IDS, MASK, generator=torch.Generator().manual_seed(0)), keyword)
    given = GenerationConfig(num_return_sequences=2, do_sample=True, top_k=1)
    assert len(model.generate(IDS, MASK, generation_config=given)) == 6


def test_neither_padding_nor_mask_stands_inside_a_text():
    for overrides in ({}, BLANKS):
        model = tiny_model(**overrides)
        with torch.no_grad():
            model.decoder.lm_head.bias[[0, 3]] = 50.0 if not overrides else 0.0
            model.decoder.lm_head.bias[3] = 50.0
        ids = model.generate(IDS, MASK, target_lengths=9, eos_token_id=None)
        assert not (ids == 3).any()
        if not overrides:
            assert not (ids == 0).any()


def test_returned_sequences_differ_as_far_as_the_candidates_go(model, caplog):
    options = {"num_return_sequences": 3, "num_candidates": 12, "prior_temperature": 0.3, "target_lengths": 2}
    out = model.generate(IDS, MASK, generator=torch.Generator().manual_seed(0), return_dict_in_generate=True, **options)
    each = model.generate(
        IDS, MASK, generator=torch.Generator().manual_seed(0), **{**options, "num_return_sequences": 12}
    )
    for row in range(3):
        texts = {tuple(text) for text in out.sequences.view(3, 3, -1)[row].tolist()}
        known = {tuple(text) for text in each.view(3, 12, -1)[row].tolist()}
        assert len(texts) == min(3, len(known))
        scores = out.sequences_scores.view(3, 3)[row]
        assert (scores[:-1] >= scores[1:]).all()


def test_equal_sequences_are_said_to_be_so(caplog):
    model = tiny_model()
    with caplog.at_level("WARNING"):
        model.generate(IDS, MASK, num_return_sequences=3, prior_temperature=0.0, expert_selection="argmax")
    assert "some of the texts are equal" in caplog.text


@pytest.mark.parametrize("skip_prompt", [True, False])
def test_a_streamer_gets_the_whole_answer(skip_prompt, capsys):
    model = tiny_model()

    class Letters:
        def decode(self, ids, **_):
            return "".join(chr(65 + i) for i in ids)

    streamer = TextStreamer(Letters(), skip_prompt=skip_prompt)
    ids = model.generate(IDS[:1], generator=torch.Generator().manual_seed(0), streamer=streamer)
    assert capsys.readouterr().out.strip() == Letters().decode(ids[0].tolist())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": torch.full((3, 4), VOCAB_SIZE)}, f"labels hold ids from {VOCAB_SIZE} to {VOCAB_SIZE}"),
        ({"labels": torch.full((3, 4), -5)}, "-100 is padding"),
        ({"labels": torch.full((3, 4), 5), "expert_indices": torch.full((3, 4), 3)}, "expert_indices holds values"),
        ({"labels": torch.full((3, 4), 5), "expert_indices": torch.zeros(3, 5)}, "expert_indices has shape"),
        ({"labels": torch.full((3, 4), 5), "timesteps": torch.tensor([0.5, 1.5, 0.1])}, "timesteps holds values"),
        ({"labels": torch.full((3, 4), 5), "timesteps": torch.tensor([0.5])}, "timesteps has shape"),
        ({"attention_mask": 3 * MASK}, "attention_mask holds values other than 0 and 1"),
    ],
    ids=["label too large", "label negative", "expert", "experts' shape", "time", "times' shape", "mask"],
)
def test_forward_refuses_by_name(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        model(IDS, **{"attention_mask": MASK, **arguments})


def test_labels_that_a_canvas_with_blanks_cannot_hold_are_refused():
    model = tiny_model(**BLANKS)
    with pytest.raises(ValueError, match="labels hold pad_token_id=0, which is the blank"):
        model(IDS, MASK, labels=torch.tensor([[5, 0, 2]] * 3))
    short = torch.ones(3, 4, dtype=torch.long)
    with pytest.raises(ValueError, match="decoder_attention_mask is 1 positions too short for its labels"):
        model(IDS, MASK, labels=torch.tensor([[5, 5, 5]] * 3), decoder_attention_mask=short)
    with pytest.raises(ValueError, match="labels hold ids"):
        tiny_model(YanForMaskedLM)(IDS, MASK, labels=IDS + VOCAB_SIZE)


def test_noise_longer_than_the_position_table_is_used_from_its_beginning():
    model = tiny_model(**BLANKS)
    noise = torch.randn(3, 50, 16, generator=torch.Generator().manual_seed(0))
    options = {"length_mode": "canvas", "expert_selection": "argmax"}
    assert torch.equal(
        model.generate(IDS, MASK, prior_noise=noise, **options),
        model.generate(IDS, MASK, prior_noise=noise[:, :32], **options),
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({**BLANKS, "pad_token_id": 2}, "pad_token_id=2 is also an eos_token_id"),
        ({"hidden_act": "mystery"}, "hidden_act='mystery' is no activation"),
        ({"length_head": "source"}, "set canvas_ratio above 1"),
        ({"flow_layers": 2**31, "cross_attention_layers": None}, "flow_layers=2147483648 is more than 1000"),
        ({"hidden_size": 2**20}, "parameters; that is more than"),
        ({"encoder_config": {"model_type": "mystery"}}, "encoder_config: "),
    ],
    ids=lambda value: "",
)
def test_configs_that_cannot_be_built_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**overrides)


def test_the_folder_of_another_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert", "hidden_size": 16}')
    with pytest.raises(ValueError, match="model_type='bert' is the config of another model"):
        YanForConditionalGeneration.from_pretrained(tmp_path)


def test_whole_numbers_are_fine_for_the_sampling_of_times():
    model = tiny_model(training_config={"time_sampling_alpha": 1, "time_sampling_beta": 3}).train()
    assert model(IDS, MASK, labels=IDS.masked_fill(MASK == 0, -100)).loss.isfinite()


def test_adapters_on_all_linear_layers_train_and_write():
    model = tiny_model()
    adapted = get_peft_model(model, LoraConfig(task_type="SEQ_2_SEQ_LM", target_modules="all-linear", r=2))
    adapted(input_ids=IDS, attention_mask=MASK, labels=IDS.masked_fill(MASK == 0, -100)).loss.backward()
    assert adapted.generate(input_ids=IDS, attention_mask=MASK).shape[0] == 3


def test_compiled_half_precision_at_a_width_that_is_no_multiple_of_eight():
    model = tiny_model(
        hidden_size=20, num_attention_heads=2, intermediate_size=28, flow_layers=1, cross_attention_layers=[0]
    ).to(torch.bfloat16)
    options = {"target_lengths": 5, "num_inference_steps": 1}
    plain = model.generate(IDS, MASK, generator=torch.Generator().manual_seed(0), **options)
    traced = model.generate(
        IDS, MASK, generator=torch.Generator().manual_seed(0), compile_config=CompileConfig(backend="eager"), **options
    )
    assert torch.equal(plain, traced)


@pytest.fixture(scope="module")
def shipped() -> tuple:
    folder = ROOT / "examples" / "models" / "yan-e2e"
    model = YanForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def test_the_librarys_own_pipeline_refuses_rather_than_cut_an_answer(shipped):
    model, tokenizer = shipped
    stock = pipeline("text-generation", model=model, tokenizer=tokenizer)
    with pytest.raises(ValueError, match="pass pipeline_class=YanTextGenerationPipeline"):
        stock("name[Aromi], eatType[coffee shop]")
    ours = pipeline("text-generation", model=model, tokenizer=tokenizer, pipeline_class=YanTextGenerationPipeline)
    assert "Aromi" in ours("name[Aromi], eatType[coffee shop]")[0]["generated_text"]


def test_the_pipeline_takes_columns_and_names_the_row_that_is_no_text(shipped):
    model, tokenizer = shipped
    pipe = YanTextGenerationPipeline(model=model, tokenizer=tokenizer)
    text = "name[Aromi], eatType[coffee shop]"

    def answers(texts):
        return [answer[0]["generated_text"] for answer in pipe(texts, generator=torch.Generator().manual_seed(0))]

    assert answers((text, text)) == answers(pd.Series([text, text])) == answers([text, text])
    assert pipe([]) == []
    for texts, message in (
        ([text, None], "source 1 of 2 is of type NoneType"),
        ([text, "a\ud800"], "source 1 of 2 is no valid Unicode at character 1"),
        ([[text]], "source 0 of 1 is of type list"),
        (3, "the source is of type int"),
        ({"text": text}, "the source is of type dict"),
        (text.encode(), "the source is of type bytes"),
    ):
        with pytest.raises(ValueError, match=message):
            pipe(texts)


def test_an_empty_text_is_answered_alike_by_pipeline_and_generate(shipped):
    model, tokenizer = shipped
    pipe = YanTextGenerationPipeline(model=model, tokenizer=tokenizer)
    ids = model.generate(**tokenizer("", return_tensors="pt"), generator=torch.Generator().manual_seed(0))
    written = pipe("", generator=torch.Generator().manual_seed(0))[0]["generated_text"]
    assert written == tokenizer.decode(ids[0], skip_special_tokens=True).strip()


LIBRARY_OPTIONS = vars(GenerationConfig())
NEUTRAL = GenerationConfig._get_default_generation_params()


def test_every_option_of_the_library_has_its_place_in_the_rule():
    """A release of transformers that adds one fails here, so that somebody decides what it means for YAN."""
    places = [HONOURED_OPTIONS, WITHOUT_EFFECT, REFUSED_OPTIONS, GENERATION_DEFAULTS]
    placed = [name for place in places for name in place]
    assert len(placed) == len(set(placed))
    assert set(LIBRARY_OPTIONS) | set(NEUTRAL) <= set(placed)
    assert not set(GENERATION_DEFAULTS) & set(LIBRARY_OPTIONS)
    theirs = set(inspect.signature(GenerationMixin.generate).parameters)
    ours = set(inspect.signature(YanForConditionalGeneration.generate).parameters) | {"inputs"}
    assert theirs - ours <= {*IGNORED_ARGUMENTS, *REFUSED_ARGUMENTS}


@pytest.mark.parametrize("name", REFUSED_OPTIONS)
def test_an_option_that_asks_for_something_is_refused_wherever_it_stands(model, name):
    message = re.escape(f"{name}=7 cannot be honoured: {REFUSED_OPTIONS[name]}; leave it out")
    with pytest.raises(ValueError, match=message):
        model.generate(IDS, MASK, **{name: 7})
    given = GenerationConfig()
    setattr(given, name, 7)
    with pytest.raises(ValueError, match=message):
        model.generate(IDS, MASK, generation_config=given)
    own = copy.deepcopy(model.generation_config)
    setattr(own, name, 7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "generation_config", own)
        with pytest.raises(ValueError, match=message):
            model.generate(IDS, MASK)


def test_an_option_that_is_not_in_the_table_is_refused_too(model):
    given = GenerationConfig()
    given.min_p = 0.5
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(REFUSED_OPTIONS, "min_p")
        with pytest.raises(ValueError, match=r"min_p=0\.5 cannot be honoured: it works token by token"):
            model.generate(IDS, MASK, generation_config=given)


def test_what_asks_for_nothing_changes_nothing(model):
    def written(**options):
        return model.generate(IDS, MASK, generator=torch.Generator().manual_seed(0), **options)

    plain = written()
    for value in (None, False):
        assert torch.equal(written(**dict.fromkeys(REFUSED_OPTIONS, value)), plain)
    assert torch.equal(written(**{n: v for n, v in NEUTRAL.items() if n in REFUSED_OPTIONS}), plain)
    assert torch.equal(written(**dict.fromkeys([*IGNORED_ARGUMENTS, *REFUSED_ARGUMENTS])), plain)
    assert torch.equal(written(logits_processor=LogitsProcessorList(), stopping_criteria=[]), plain)
    values = {
        "use_cache": True, "cache_implementation": "static", "cache_config": {"backend": "quanto"}, "max_cache_len": 64,
        "prefill_chunk_size": 2, "low_memory": True, "decoder_start_token_id": 5, "is_assistant": True,
        "continuous_batching_config": object(), "transformers_version": "4.0.0",
    }  # fmt: skip
    assert set(values) == {name for name in WITHOUT_EFFECT if not name.startswith("_")}
    for name, value in values.items():
        assert torch.equal(written(**{name: value}), plain), name


@pytest.mark.parametrize("name", REFUSED_ARGUMENTS)
def test_an_argument_of_the_library_that_yan_does_not_have_is_refused(model, name):
    with pytest.raises(ValueError, match=f"{name} cannot be honoured: "):
        model.generate(IDS, MASK, **{name: IDS})


def test_an_answer_is_as_long_as_the_positions_allow_not_twenty_tokens(model):
    ids = model.generate(IDS, MASK, GenerationConfig(length_mode="canvas"), eos_token_id=None)
    assert ids.shape == (3, model.config.max_position_embeddings)


def test_the_page_on_generation_names_every_option():
    page = (ROOT / "docs" / "generation.md").read_text(encoding="utf-8")
    without_effect = (name for name in WITHOUT_EFFECT if not name.startswith("_"))
    arguments = {*IGNORED_ARGUMENTS, *REFUSED_ARGUMENTS}
    known = {*HONOURED_OPTIONS, *without_effect, *REFUSED_OPTIONS, *GENERATION_DEFAULTS, *arguments}
    assert not [name for name in known - {"transformers_version"} if f"`{name}`" not in page]
