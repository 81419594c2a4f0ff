"""`pipeline("text2text-generation")` and `pipeline("text-generation")` for YAN: source text in, answer out."""

from collections.abc import Iterable, Mapping, Sequence

from torch.utils.data import Dataset
from transformers.pipelines.text_generation import ReturnType, TextGenerationPipeline


def _is_chat(value: object) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and all(isinstance(turn, Mapping) for turn in value)


def _check_text(value: object, name: str) -> None:
    """
    Raises:
        ValueError: for what is neither a text nor a conversation, and for a text that is no Unicode.
    """
    if _is_chat(value):
        return
    if not isinstance(value, str):
        raise ValueError(f"{name} is of type {type(value).__name__}: {value!r:.60}; pass texts")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} is no valid Unicode at character {error.start}: {value!r:.60}") from None


class YanTextGenerationPipeline(TextGenerationPipeline):
    """
    Answers each source text with `[{"generated_text": str}, …]`, `num_return_sequences` of them, without the source.

    Differences from the class it extends, which continues a prompt from left to right: the answer does not start with
    the prompt, the source keeps its special tokens and the tokenizer's padding side, and no sampling defaults are
    slipped in. Generation options (`num_inference_steps`, `num_candidates`, …) are keyword arguments of the call.
    `max_length` is one of them; `tokenizer_encode_kwargs` bound the source. A `trajectory` has the shape (steps + 1, L,
    d) for each answer.
    """

    _default_generation_config = None

    def __init__(self, *args, **kwargs):
        tokenizer = kwargs.get("tokenizer")
        padding_side = None if tokenizer is None else tokenizer.padding_side
        super().__init__(*args, **kwargs)
        if padding_side is not None:
            self.tokenizer.padding_side = padding_side

    def check_model_type(self, supported_models):
        """The library's list of left-to-right models does not concern YAN."""

    def __call__(self, text_inputs, **kwargs):
        """
        Args:
            text_inputs: a text, a conversation, or a list, tuple, column or generator of them.

        Raises:
            ValueError: for what is no text, with its place in the list, before any is answered.
        """
        if isinstance(text_inputs, str) or _is_chat(text_inputs):
            _check_text(text_inputs, "the source")
            return super().__call__(text_inputs, **kwargs)
        if isinstance(text_inputs, bytes | bytearray):
            _check_text(text_inputs, "the source")
        # A column of a data set is a sequence, which the base class would take for one text.
        if isinstance(text_inputs, Sequence) or hasattr(text_inputs, "tolist"):
            text_inputs = list(text_inputs)
            for index, text in enumerate(text_inputs):
                _check_text(text, f"source {index} of {len(text_inputs)}")
            return super().__call__(text_inputs, **kwargs) if text_inputs else []
        if not isinstance(text_inputs, Iterable | Dataset) or isinstance(text_inputs, Mapping):
            _check_text(text_inputs, "the source")
        return super().__call__(text_inputs, **kwargs)

    def preprocess(self, prompt_text, add_special_tokens=None, max_length=None, **kwargs):
        # The base class would cut the source to `max_length`, which is the answer's.
        inputs = super().preprocess(
            prompt_text, add_special_tokens=True if add_special_tokens is None else add_special_tokens, **kwargs
        )
        if inputs["input_ids"].shape[1] == 0:
            raise ValueError(f"the tokenizer makes no token of the source {prompt_text!r}; give at least one word")
        return inputs

    def _forward(self, model_inputs, prefix_length=0, **generate_kwargs):
        # The base class would add `prefix_length` to `max_length`, as if answers began with their source.
        outputs = super()._forward(model_inputs, **generate_kwargs)
        # The base class would cut the prompt's length off the answer.
        outputs["input_ids"] = None
        if "trajectory" in outputs:
            # The base class looks for rows along the first axis, and there are the steps.
            sources, answers = outputs["generated_sequence"].shape[:2]
            states = outputs["trajectory"]
            states = states.reshape(-1, sources * answers, *states.shape[-2:]).transpose(0, 1)
            outputs["trajectory"] = states.unflatten(0, (sources, answers))
        return outputs

    def postprocess(self, model_outputs, return_type=ReturnType.NEW_TEXT, **kwargs):
        records = super().postprocess(model_outputs, return_type=return_type, **kwargs)
        for record in records:
            if isinstance(record.get("generated_text"), str):
                record["generated_text"] = record["generated_text"].strip()
        return records
