"""Options of generation: their defaults, where they come from, and which are refused."""

import copy
import difflib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from transformers.generation import GenerationConfig, GenerationMixin

from .compilation_yan import default_compile_options
from .flow_matching_yan import SOLVER_EVALUATIONS
from .input_checks_yan import check_number
from .sampling_yan import SamplingOptions

# What other libraries call by another name.
OTHER_NAMES = {
    "seed": "generator=torch.Generator().manual_seed(seed)",
    "steps": "num_inference_steps",
    "num_steps": "num_inference_steps",
}
# Defaults of the options that transformers' GenerationConfig does not know. They live in it as plain attributes.
GENERATION_DEFAULTS = {
    "num_inference_steps": 3,
    "solver": "euler",
    "time_shift": 1.0,
    "expert_selection": "sample",
    "prior_temperature": 1.0,
    "blank_penalty": 0.0,
    "merge_repeats": 0,
    "length_mode": "predicted",
    "num_length_candidates": 1,
    "num_candidates": 1,
    "output_trajectory": False,
    "compile": False,
}
SWITCHES = ("do_sample", "return_dict_in_generate", "output_trajectory", "compile", "disable_compile")
# Steps and candidates beyond this are typing errors, and would fill memory before anything else.
MOST = 10_000
# Resolved sets of options that a model keeps.
MOST_RESOLVED = 64
CHOICES = {
    "solver": tuple(SOLVER_EVALUATIONS),
    "expert_selection": ("sample", "argmax"),
    "length_mode": ("predicted", "source", "canvas"),
}
# Options of transformers' GenerationConfig that YAN honours,
HONOURED_OPTIONS = {
    "max_length",
    "max_new_tokens",
    "min_length",
    "min_new_tokens",
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "num_return_sequences",
    "return_dict_in_generate",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "compile_config",
    "disable_compile",
}
# and those that change no text, only how a left-to-right model computes it. All others are refused unless they ask for
# nothing.
WITHOUT_EFFECT = {
    "use_cache",
    "cache_implementation",
    "cache_config",
    "max_cache_len",
    "prefill_chunk_size",
    "low_memory",
    "decoder_start_token_id",
    "is_assistant",
    "continuous_batching_config",
    "transformers_version",
    "_from_model_config",
    "_commit_hash",
    "_original_object_hash",
}
# Why the others, each of which the table in docs/generation.md names, cannot be honoured.
NO_SEARCH = "there is no search over beginnings of a text; num_candidates and num_length_candidates try several texts"
NO_ORDER = (
    "it changes the choice of a token by the tokens before it, and YAN chooses all at once; merge_repeats takes out "
    "what stands twice in a row"
)
NO_TOKEN_RULES = "YAN has no rules for single tokens; temperature, top_k and top_p filter the draw of all"
NO_OTHER_FILTER = "of the filters of drawn tokens YAN has temperature, top_k and top_p"
NO_DRAFTS = "there is nothing to speed up by guessing: a step writes all positions"
NO_STOP = "all positions are written before there is a text; cut the text that comes back"
TOKEN_BY_TOKEN = "it works token by token, and YAN writes all positions at once"
SCORES = "scores of texts come with return_dict_in_generate=True, as sequences_scores"
REFUSED_OPTIONS = {
    **dict.fromkeys(("num_beams", "num_beam_groups", "diversity_penalty", "length_penalty"), NO_SEARCH),
    **dict.fromkeys(("early_stopping", "constraints", "force_words_ids"), NO_SEARCH),
    **dict.fromkeys(("repetition_penalty", "no_repeat_ngram_size", "penalty_alpha", "sequence_bias"), NO_ORDER),
    **dict.fromkeys(("encoder_repetition_penalty", "encoder_no_repeat_ngram_size"), NO_ORDER),
    **dict.fromkeys(("exponential_decay_length_penalty", "token_healing", "watermarking_config"), NO_ORDER),
    **dict.fromkeys(("bad_words_ids", "suppress_tokens", "begin_suppress_tokens"), NO_TOKEN_RULES),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "guidance_scale", "dola_layers"), NO_TOKEN_RULES),
    **dict.fromkeys(("remove_invalid_values", "renormalize_logits"), NO_TOKEN_RULES),
    **dict.fromkeys(("min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "top_h"), NO_OTHER_FILTER),
    **dict.fromkeys(("prompt_lookup_num_tokens", "max_matching_ngram_size", "speculation_type", "use_mtp"), NO_DRAFTS),
    **dict.fromkeys(("num_assistant_tokens", "num_assistant_tokens_schedule", "target_lookbehind"), NO_DRAFTS),
    **dict.fromkeys(("assistant_confidence_threshold", "assistant_early_exit", "assistant_ensemble_weight"), NO_DRAFTS),
    "assistant_lookbehind": NO_DRAFTS,
    "stop_strings": NO_STOP,
    "max_time": "a call has a fixed number of steps; choose num_inference_steps",
    "output_scores": SCORES,
    "output_logits": SCORES,
    "output_attentions": "call the model's forward with output_attentions=True",
    "output_hidden_states": "call the model's forward with output_hidden_states=True",
}
# The same for arguments of transformers' generate() that are no options.
REFUSED_ARGUMENTS = {
    **dict.fromkeys(("logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn"), TOKEN_BY_TOKEN),
    **dict.fromkeys(("assistant_model", "assistant_tokenizer"), NO_DRAFTS),
    **dict.fromkeys(("negative_prompt_ids", "negative_prompt_attention_mask"), NO_TOKEN_RULES),
    "custom_generate": "YAN has a generate() of its own",
    "past_key_values": "nothing is kept from one call to the next",
}
# What Trainer, PEFT, pipelines and other libraries pass along and generation does not need.
IGNORED_ARGUMENTS = (
    "labels",
    "decoder_input_ids",
    "decoder_attention_mask",
    "token_type_ids",
    "synced_gpus",
    "tokenizer",
)


def take_library_arguments(arguments: dict) -> None:
    """
    Takes out of the keyword arguments of `generate` those of transformers that are no options: some are passed over,
    others refused unless they ask for nothing (None, or an empty list).

    Raises:
        ValueError: for one of `REFUSED_ARGUMENTS` that asks for something.
    """
    for name in IGNORED_ARGUMENTS:
        arguments.pop(name, None)
    for name, reason in REFUSED_ARGUMENTS.items():
        value = arguments.pop(name, None)
        if not (value is None or (isinstance(value, list | tuple) and not value)):
            raise ValueError(f"{name} cannot be honoured: {reason}")


def check_library_options(options: Mapping[str, object]) -> None:
    """
    Raises:
        ValueError: for a length that is no whole number, a filter of tokens that is no number, and a switch that is
            neither True nor False.
    """
    for name in ("max_length", "max_new_tokens", "min_length", "min_new_tokens", "top_k"):
        if options.get(name) is not None:
            expected = "a whole number, not negative"
            check_number(name, options[name], allowed=lambda x: x >= 0, expected=expected, whole=True)
    for name in ("temperature", "top_p"):
        if options.get(name) is not None:
            check_number(name, options[name], allowed=lambda x: x >= 0, expected="a finite number, not negative")
    for name in SWITCHES:
        if not isinstance(options.get(name), bool | None):
            raise ValueError(f"{name}={options[name]!r} must be True or False")


def refuse_other_options(options: Mapping[str, object]) -> None:
    """
    The rule for options of transformers that YAN does not have: at a value that asks for nothing (None, False, or the
    library's default) they are passed over, at any other they are refused.

    Raises:
        ValueError: for an option of left-to-right generation that asks for something.
    """
    neutral = GenerationConfig._get_default_generation_params()
    # Not those of the table alone: a later release of transformers may know more, an earlier one fewer.
    for name in {**vars(GenerationConfig()), **REFUSED_OPTIONS}:
        if name in HONOURED_OPTIONS or name in WITHOUT_EFFECT:
            continue
        value = options.get(name)
        if value is not None and value is not False and value != neutral.get(name):
            reason = REFUSED_OPTIONS.get(name, TOKEN_BY_TOKEN)
            raise ValueError(f"{name}={value!r} cannot be honoured: {reason}; leave it out")


@dataclass(frozen=True)
class GenerationOptions:
    """
    What a call of `generate()` does, resolved and checked.

    Args:
        sampling: what is computed on a canvas.
        longest: tokens that an answer may have.
        length_mode: "predicted", "source" or "canvas".
        num_length_candidates, num_candidates, num_return_sequences: lengths and priors tried, and texts returned per
            row.
        prior_temperature: scales drawn noise.
        merge_repeats: longest run of tokens whose repetition is left out.
        pad_token_id: what a text is padded with: the first EOS where there is no padding token.
        bos_token_id: dropped where a text begins with it; None if there is none, or if it also ends texts.
        return_dict: whether a `YanGenerateOutput` is returned.
        compile_options: keyword arguments of `torch.compile`; None where nothing is compiled.
    """

    sampling: SamplingOptions
    longest: int
    length_mode: str
    num_length_candidates: int
    num_candidates: int
    num_return_sequences: int
    prior_temperature: float
    merge_repeats: int
    pad_token_id: int
    bos_token_id: int | None
    return_dict: bool
    compile_options: dict | None

    @property
    def num_priors(self) -> int:
        """Priors of each row."""
        return max(self.num_candidates, self.num_return_sequences)

    @property
    def num_evaluations(self) -> int:
        """Evaluations of the velocity field's trunk."""
        return self.sampling.num_inference_steps * SOLVER_EVALUATIONS[self.sampling.solver]

    @classmethod
    def from_config(cls, config: GenerationConfig, device: torch.device) -> "GenerationOptions":
        """From a complete `GenerationConfig`."""
        eos = config.eos_token_id
        eos = () if eos is None else tuple(eos) if isinstance(eos, (list, tuple)) else (int(eos),)
        filters = {name: getattr(config, name) for name in ("temperature", "top_k", "top_p")}
        sampling = SamplingOptions(
            num_inference_steps=config.num_inference_steps,
            solver=config.solver,
            time_shift=config.time_shift,
            expert_selection=config.expert_selection,
            blank_penalty=float(config.blank_penalty),
            min_new_tokens=(config.min_length if config.min_new_tokens is None else config.min_new_tokens) or 0,
            eos_token_ids=eos,
            do_sample=bool(config.do_sample),
            output_trajectory=bool(config.output_trajectory),
            **(filters if config.do_sample else {}),
        )
        compile_options = None
        if config.compile and config.compile_config is None:
            compile_options = default_compile_options(device)
        elif config.compile:
            compile_options = {**config.compile_config.to_dict(), "fullgraph": True, "dynamic": False}
            compile_options.pop("_compile_all_devices", None)
        return cls(
            sampling=sampling,
            longest=config.max_length if config.max_new_tokens is None else config.max_new_tokens,
            length_mode=config.length_mode,
            num_length_candidates=config.num_length_candidates,
            num_candidates=config.num_candidates,
            num_return_sequences=config.num_return_sequences,
            prior_temperature=config.prior_temperature,
            merge_repeats=config.merge_repeats,
            pad_token_id=(*eos, 0)[0] if config.pad_token_id is None else config.pad_token_id,
            bos_token_id=None if config.bos_token_id in eos else config.bos_token_id,
            return_dict=bool(config.return_dict_in_generate),
            compile_options=compile_options,
        )


def _unknown_options(names: list[str], config: GenerationConfig) -> str:
    """What to say of options that nobody knows, with those that may have been meant: YAN's before the library's."""
    hints = ""
    for name in names:
        of_yan, of_all = (
            difflib.get_close_matches(name, known, 1) for known in (GENERATION_DEFAULTS, config.to_dict())
        )
        if meant := OTHER_NAMES.get(name) or next(iter(of_yan + of_all), None):
            hints += f" {name}: did you mean {meant}?"
    return f"generate() got unknown arguments {names};{hints or ' see its docstring for the options'}"


class YanGenerationOptionsMixin(GenerationMixin):
    """Resolves options: argument, then `generation_config`, then the model's own, then the default."""

    def default_generation_config(self) -> GenerationConfig:
        """Three Euler steps, predicted length (the canvas cut at EOS where there is no length head), greedy."""
        options = {**GENERATION_DEFAULTS, "length_mode": self._default_length_mode()}
        ids = {f"{name}_token_id": getattr(self.config, f"{name}_token_id") for name in ("pad", "bos", "eos")}
        # Without max_length, Seq2SeqTrainer writes the library's default of 20 here.
        return GenerationConfig(do_sample=False, max_length=self.config.max_position_embeddings, **options, **ids)

    def adjust_generation_fn(self, *args, **kwargs):
        """
        As in transformers; a folder without generation options (an autoencoder's) gets YAN's defaults, and fields of
        the model's config that were given to `from_pretrained` stay out of the generation options.
        """
        own = set(self.config.to_dict()) - set(GenerationConfig().to_dict())
        super().adjust_generation_fn(*args, **{name: value for name, value in kwargs.items() if name not in own})
        defaults = self.default_generation_config()
        if getattr(self.generation_config, "_from_model_config", False):
            self.generation_config = defaults
        elif self.generation_config.max_length is None:
            self.generation_config.max_length = defaults.max_length

    def prepare_inputs_for_generation(self, *args, **kwargs):
        """Required by PEFT's sequence-to-sequence wrapper; YAN's `generate` never calls it."""
        raise NotImplementedError("YAN writes all positions at once; there is no next-token input to prepare")

    def generation_options(self, generation_config: GenerationConfig | None = None, **kwargs) -> GenerationOptions:
        """
        What `generate()` does with these options: argument, then `generation_config`, then the model's own, then the
        default.

        Raises:
            ValueError: for an unknown option, a value that is none, or options that do not go together.
        """
        key = self._options_key(generation_config, kwargs)
        resolved = self.__dict__.setdefault("_resolved_options", OrderedDict())
        if key is None or key not in resolved:
            complete, unused = self._prepare_generation_config(generation_config, **kwargs)
            if unused:
                raise ValueError(_unknown_options(sorted(unused), complete))
            options = GenerationOptions.from_config(complete, self.device)
            if key is None:
                return options
            resolved[key] = options
            while len(resolved) > MOST_RESOLVED:
                resolved.popitem(last=False)
        return resolved[key]

    def _options_key(self, generation_config: GenerationConfig | None, kwargs: dict) -> tuple | None:
        """
        All that resolving reads, as text; None where a value's text may not tell it from others. Resolving takes longer
        than drawing the noise does.
        """
        plain = all(isinstance(value, int | float | str | None) for value in kwargs.values())
        if not plain or not isinstance(generation_config, GenerationConfig | None):
            return None
        config = self.config
        sizes = (config.vocab_size, config.max_position_embeddings, config.canvas_ratio, config.length_head)
        texts = [None if c is None else repr(vars(c)) for c in (self.generation_config, generation_config)]
        return *sizes, *texts, repr(sorted(kwargs.items())), str(self.device)

    def _prepare_generation_config(self, generation_config: GenerationConfig | None, **kwargs):
        # The library's own checks compare before they look at types.
        if not isinstance(generation_config, GenerationConfig | None):
            raise ValueError(
                f"generation_config is of type {type(generation_config).__name__}; pass a GenerationConfig, or the "
                "options themselves as keyword arguments"
            )
        check_library_options(kwargs)
        # As does what it does with options that YAN refuses.
        asked = {}
        for given in (self.generation_config, generation_config):
            asked |= {name: value for name, value in vars(given).items() if value is not None} if given else {}
        refuse_other_options({**asked, **kwargs})
        passed_over = {*REFUSED_OPTIONS, *(name for name in WITHOUT_EFFECT if not name.startswith("_"))}
        kwargs = {name: value for name, value in kwargs.items() if name not in passed_over}
        defaults = self._default_options()
        ours = {name: kwargs[name] for name in defaults if kwargs.get(name) is not None}
        kwargs = {name: value for name, value in kwargs.items() if name not in defaults}
        has_max_length = any(
            value is not None
            for value in (
                kwargs.get("max_length"),
                self.generation_config.max_length,
                None if generation_config is None else generation_config.max_length,
            )
        )
        # The library ties the number of texts to sampling or beams, and would refuse it.
        holders = [config for config in (generation_config, self.generation_config) if config is not None]
        returned = next((c.num_return_sequences for c in holders if c.num_return_sequences is not None), None)
        if returned is not None:
            ours.setdefault("num_return_sequences", returned)
        given = copy.deepcopy(generation_config) or GenerationConfig()
        given.num_return_sequences = 1
        generation_config, _ = super()._prepare_generation_config(given)
        unused = generation_config.update(**kwargs)
        if not has_max_length:
            generation_config.max_length = self.config.max_position_embeddings
        for name, default in defaults.items():
            value = ours.get(name, getattr(generation_config, name, None))
            setattr(generation_config, name, default if value is None else value)
        # As in transformers: a configuration asks for compilation, disable_compile forbids it.
        refused = ours.get("compile") is False
        asked = generation_config.compile or (generation_config.compile_config is not None and not refused)
        generation_config.compile = bool(asked and not generation_config.disable_compile)
        self._check_options(generation_config)
        return generation_config, unused

    def _default_options(self) -> dict:
        return {**GENERATION_DEFAULTS, "length_mode": self._default_length_mode(), "num_return_sequences": 1}

    def _default_length_mode(self) -> str:
        if self.config.canvas_from_source:
            return "source"
        return "predicted" if self.config.predicts_length else "canvas"

    def _check_options(self, options: GenerationConfig) -> None:
        for name in ("num_inference_steps", "num_length_candidates", "num_candidates", "num_return_sequences"):
            check_number(
                name,
                getattr(options, name),
                allowed=lambda x: 1 <= x <= MOST,
                expected=f"a whole number of at least 1 and at most {MOST}",
                whole=True,
            )
        check_library_options(vars(options))
        for name, values in CHOICES.items():
            if getattr(options, name) not in values:
                raise ValueError(f"{name}={getattr(options, name)!r} must be one of {sorted(values)}")
        positive = {"allowed": lambda x: x > 0, "expected": "a finite number greater than 0"}
        check_number("time_shift", options.time_shift, **positive)
        check_number(
            "prior_temperature",
            options.prior_temperature,
            allowed=lambda x: x >= 0,
            expected="a finite number, not negative",
        )
        check_number(
            "merge_repeats",
            options.merge_repeats,
            allowed=lambda x: 0 <= x <= MOST,
            expected=f"a whole number of tokens, at most {MOST}",
            whole=True,
        )
        check_number("blank_penalty", options.blank_penalty, allowed=lambda x: True, expected="a finite number")
        if options.do_sample and options.temperature is not None:
            check_number("temperature", options.temperature, **positive)
        if options.do_sample and options.top_p is not None:
            check_number("top_p", options.top_p, allowed=lambda x: 0 < x <= 1, expected="above 0 and at most 1")
        self._check_token_ids(options)
        self._check_fit(options)

    def _check_token_ids(self, options: GenerationConfig) -> None:
        size = self.config.vocab_size
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            value = getattr(options, name)
            for token_id in value if isinstance(value, list | tuple) else [value]:
                if token_id is not None:
                    check_number(
                        name,
                        token_id,
                        allowed=lambda x: 0 <= x < size,
                        expected=f"a token id below vocab_size={size}",
                        whole=True,
                    )

    def _check_fit(self, options: GenerationConfig) -> None:
        """Options that this model cannot have."""
        if options.blank_penalty and self.config.canvas_ratio == 1:
            raise ValueError(
                f"blank_penalty={options.blank_penalty} is for canvases with blanks; this model has canvas_ratio=1 and "
                "writes a token at every position"
            )
        for name in ("min_new_tokens", "min_length"):
            if getattr(options, name) and self.config.canvas_ratio > 1:
                raise ValueError(
                    f"{name}={getattr(options, name)} cannot be promised by a model with canvas_ratio="
                    f"{self.config.canvas_ratio}: any position may be a blank. Leave it out; target_lengths makes "
                    "canvases longer"
                )
        if options.length_mode == "predicted" and not self.config.predicts_length:
            raise ValueError(
                "length_mode='predicted' needs a length head, this model has none (config.length_head="
                f"{self.config.length_head!r}); use length_mode={self._default_length_mode()!r} or pass target_lengths"
            )
        if options.length_mode == "source" and not self.config.canvas_from_source:
            raise ValueError(
                "length_mode='source' needs a model whose canvas belongs to its source (config.length_head='source'); "
                f"use length_mode={self._default_length_mode()!r}"
            )
