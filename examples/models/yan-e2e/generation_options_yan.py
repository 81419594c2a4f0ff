"""Options of generation: their defaults, where they come from, and which are refused."""

from transformers.generation import GenerationConfig, GenerationMixin

from .flow_matching_yan import SOLVER_EVALUATIONS

# Defaults of the options that transformers' GenerationConfig does not know. They live in it as plain attributes.
GENERATION_DEFAULTS = {
    "num_inference_steps": 3,
    "solver": "euler",
    "time_shift": 1.0,
    "expert_selection": "sample",
    "prior_temperature": 1.0,
    "blank_penalty": 0.0,
    "length_mode": "predicted",
    "num_length_candidates": 1,
    "num_candidates": 1,
    "output_trajectory": False,
    "compile": False,
}
# Left-to-right options, with the values that ask for nothing.
NEUTRAL_OPTIONS = {
    "num_beams": (None, 1),
    "repetition_penalty": (None, 1.0),
    "encoder_repetition_penalty": (None, 1.0),
    "no_repeat_ngram_size": (None, 0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "typical_p": (None, 1.0),
    "min_p": (None,),
    "bad_words_ids": (None,),
    "sequence_bias": (None,),
    "suppress_tokens": (None,),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "stop_strings": (None,),
    "penalty_alpha": (None, 0.0),
    "guidance_scale": (None, 1.0),
    "watermarking_config": (None,),
}


class YanGenerationOptionsMixin(GenerationMixin):
    """Resolves options: argument, then `generation_config`, then the model's own, then the default."""

    def default_generation_config(self) -> GenerationConfig:
        """Three Euler steps, predicted length (the canvas cut at EOS where there is no length head), greedy."""
        options = dict(GENERATION_DEFAULTS)
        if not self.config.length_head:
            options["length_mode"] = "canvas"
        ids = {f"{name}_token_id": getattr(self.config, f"{name}_token_id") for name in ("pad", "bos", "eos")}
        # Without max_length, Seq2SeqTrainer writes the library's default of 20 here.
        return GenerationConfig(do_sample=False, max_length=self.config.max_position_embeddings, **options, **ids)

    def adjust_generation_fn(self, *args, **kwargs):
        """
        As in transformers; a folder without generation options (an autoencoder's) gets YAN's defaults, and fields of the model's config that
        were given to `from_pretrained` stay out of the generation options.
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

    def _prepare_generation_config(self, generation_config: GenerationConfig | None, **kwargs):
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
        generation_config, unused = super()._prepare_generation_config(generation_config, **kwargs)
        if not has_max_length:
            generation_config.max_length = self.config.max_position_embeddings
        for name, default in defaults.items():
            value = ours.get(name, getattr(generation_config, name, None))
            setattr(generation_config, name, default if value is None else value)
        # As in transformers: a configuration asks for compilation, disable_compile forbids it.
        asked = generation_config.compile or generation_config.compile_config is not None
        generation_config.compile = bool(asked and not generation_config.disable_compile)
        self._check_options(generation_config)
        return generation_config, unused

    def _default_options(self) -> dict:
        # num_return_sequences is among ours because the library ties it to sampling or beams.
        length_mode = "predicted" if self.config.length_head else "canvas"
        return {**GENERATION_DEFAULTS, "length_mode": length_mode, "num_return_sequences": 1}

    def _check_options(self, options: GenerationConfig) -> None:
        for name in ("num_inference_steps", "num_length_candidates", "num_candidates", "num_return_sequences"):
            value = getattr(options, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ValueError(f"{name}={value!r} must be a whole number of at least 1")
        allowed = {
            "solver": SOLVER_EVALUATIONS,
            "expert_selection": ("sample", "argmax"),
            "length_mode": ("predicted", "canvas"),
        }
        for name, values in allowed.items():
            if getattr(options, name) not in values:
                raise ValueError(f"{name}={getattr(options, name)!r} must be one of {sorted(values)}")
        if options.prior_temperature < 0:
            raise ValueError(f"prior_temperature={options.prior_temperature} must not be negative")
        if options.blank_penalty and self.config.canvas_ratio == 1:
            raise ValueError(
                f"blank_penalty={options.blank_penalty} is for canvases with room for blanks; this model has canvas_ratio=1 and writes a "
                "token at every position"
            )
        if options.time_shift <= 0:
            raise ValueError(f"time_shift={options.time_shift} must be greater than 0")
        if options.length_mode == "predicted" and self.length_head is None:
            raise ValueError(
                "length_mode='predicted' needs a length head, this model has none (config.length_head=False); "
                "use length_mode='canvas' or pass target_lengths"
            )
        for name, neutral in NEUTRAL_OPTIONS.items():
            if getattr(options, name, None) not in neutral:
                raise ValueError(
                    f"{name}={getattr(options, name)!r} belongs to left-to-right generation; YAN writes all positions "
                    "at once. Use num_candidates, num_length_candidates, temperature, top_k or top_p"
                )
