"""`pipeline("text2text-generation")` and `pipeline("text-generation")` for YAN: source text in, answer out."""

from collections.abc import Sequence

from transformers.pipelines.text_generation import ReturnType, TextGenerationPipeline


class YanTextGenerationPipeline(TextGenerationPipeline):
    """
    Answers each source text with `[{"generated_text": str}, …]`, `num_return_sequences` of them, without the source.

    Differences from the class it extends, which continues a prompt from left to right: the answer does not start with
    the prompt, the source keeps its special tokens and the tokenizer's padding side, and no sampling defaults are
    slipped in. Generation options (`num_inference_steps`, `num_candidates`, …) are keyword arguments of the call.
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
        # A column of a data set is a sequence, which the base class would take for one text.
        if isinstance(text_inputs, Sequence) and not isinstance(text_inputs, (str, list, tuple)):
            text_inputs = list(text_inputs)
        return super().__call__(text_inputs, **kwargs)

    def preprocess(self, prompt_text, add_special_tokens=None, **kwargs):
        if isinstance(prompt_text, str) and not prompt_text.strip():
            raise ValueError("the source text is empty; give at least one word")
        return super().preprocess(
            prompt_text, add_special_tokens=True if add_special_tokens is None else add_special_tokens, **kwargs
        )

    def _forward(self, model_inputs, **generate_kwargs):
        outputs = super()._forward(model_inputs, **generate_kwargs)
        # The base class would cut the prompt's length off the answer.
        outputs["input_ids"] = None
        return outputs

    def postprocess(self, model_outputs, return_type=ReturnType.NEW_TEXT, **kwargs):
        records = super().postprocess(model_outputs, return_type=return_type, **kwargs)
        for record in records:
            if isinstance(record.get("generated_text"), str):
                record["generated_text"] = record["generated_text"].strip()
        return records
