"""YAN's `generate()` on exported graphs, by ONNX Runtime."""

import shutil
from pathlib import Path

import torch
from transformers import GenerationConfig

from modeling_yan import YanConfig
from modeling_yan.generation_options_yan import GenerationOptions
from modeling_yan.generation_yan import YanGenerationMixin
from modeling_yan.lexicon_yan import copy_lexicon
from modeling_yan.sampling_yan import SamplingOptions
from modeling_yan.serving.graph_folder import ENCODER, MANIFEST, Manifest, canvas_graph


class YanOrtForConditionalGeneration(YanGenerationMixin):
    """
    What `yan export` wrote, with the `generate()` of the model that it came from: the same options, checks and draws,
    and for the same noise the same tokens. It stands where the model stands in `YanTextGenerationPipeline`.

        model = YanOrtForConditionalGeneration.from_pretrained("outputs/onnx")
        model.generate(**tokenizer(texts, return_tensors="pt", padding=True), num_inference_steps=1)

    Args:
        config, generation_config: the model's.
        sessions: ONNX Runtime's, by the name of their graph.
        manifest: what the graphs say of themselves.
        folder: where they lie.
    """

    main_input_name = "input_ids"
    base_model_prefix = "model"
    config_class = YanConfig
    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(
        self, config: YanConfig, generation_config: GenerationConfig, sessions: dict, manifest: Manifest, folder: Path
    ):
        self.config = config
        self.generation_config = generation_config
        self.manifest = manifest
        self.folder = folder
        self.name_or_path = str(folder)
        self._sessions = sessions

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, provider: str = "CPUExecutionProvider", session_options=None
    ) -> "YanOrtForConditionalGeneration":
        """
        Args:
            folder: what `yan export` wrote.
            provider: one of ONNX Runtime's execution providers.
            session_options: `onnxruntime.SessionOptions`; as many threads as torch has, which do not spin, by default.

        Raises:
            ImportError: without onnxruntime.
            ValueError: for a folder without graphs or with those of another model, version or format, and for a
                provider that is not there.
        """
        onnxruntime = _import_onnxruntime()
        folder = Path(folder)
        manifest = Manifest.read(folder)
        if manifest.format != "onnx":
            raise ValueError(f"{folder} was exported as {manifest.format}; export it with --format onnx")
        available = onnxruntime.get_available_providers()
        if provider not in available:
            raise ValueError(f"provider={provider!r} is not in this onnxruntime, which has {available}")
        config = YanConfig.from_pretrained(folder)
        manifest.check(folder, config)
        if session_options is None:
            session_options = onnxruntime.SessionOptions()
            session_options.intra_op_num_threads = torch.get_num_threads()
            # Threads that wait for each other by spinning take the time of whatever else runs on their cores.
            session_options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        names = [ENCODER, *map(canvas_graph, manifest.steps)]
        sessions = {
            name: onnxruntime.InferenceSession(folder / f"{name}.onnx", session_options, providers=[provider])
            for name in names
        }
        return cls(config, GenerationConfig.from_pretrained(folder), sessions, manifest, folder)

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Copies the graphs and the lexicon, and writes config and generation options as they are now."""
        target = Path(save_directory)
        target.mkdir(parents=True, exist_ok=True)
        for name in (MANIFEST, *self.manifest.files):
            if (self.folder / name).resolve() != (target / name).resolve():
                shutil.copyfile(self.folder / name, target / name)
        self.config.save_pretrained(target)
        self.generation_config.save_pretrained(target)
        copy_lexicon(self, target)

    def can_generate(self) -> bool:
        return True

    def eval(self) -> "YanOrtForConditionalGeneration":
        return self

    def to(self, device: torch.device | str | int) -> "YanOrtForConditionalGeneration":
        """
        Raises:
            ValueError: for another device than the CPU, where inputs and outputs are.
        """
        if torch.device(device).type != "cpu":
            raise ValueError(f"device={device}: graphs take inputs on the CPU; choose where they run with `provider`")
        return self

    def generation_options(self, generation_config: GenerationConfig | None = None, **kwargs) -> GenerationOptions:
        """
        As the model's, for what the graphs hold.

        Raises:
            ValueError: for options that they do not, with the reason.
        """
        options = super().generation_options(generation_config, **kwargs)
        sampling, manifest = options.sampling, self.manifest
        if sampling.num_inference_steps not in manifest.steps:
            raise ValueError(
                f"num_inference_steps={sampling.num_inference_steps} has no graph in {self.folder}, which has those of "
                f"{manifest.steps}; export the model with --steps {sampling.num_inference_steps}"
            )
        for name in ("solver", "time_shift"):
            if getattr(sampling, name) != getattr(manifest, name):
                raise ValueError(
                    f"{name}={getattr(sampling, name)!r}: the graphs were exported with {getattr(manifest, name)!r}; "
                    "set it in the model's generation_config and export again"
                )
        reasons = {
            "do_sample": "graphs choose the most probable token; use num_candidates, or the torch model",
            "min_new_tokens": "graphs have no other choice of tokens at the first positions; use target_lengths",
            "output_trajectory": "graphs return tokens, not states; use the torch model",
        }
        for name, reason in reasons.items():
            if getattr(sampling, name):
                raise ValueError(f"{name}={getattr(sampling, name)} cannot be honoured: {reason}")
        if options.compile_options is not None:
            raise ValueError("compile=True is for the torch model; graphs are compiled when they are loaded")
        return options

    def encode_source(
        self, input_ids, attention_mask=None, inputs_embeds=None, encoder_outputs=None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As the model's, from `input_ids` alone."""
        if inputs_embeds is not None or encoder_outputs is not None:
            name = "encoder_outputs" if inputs_embeds is None else "inputs_embeds"
            raise ValueError(f"{name}: graphs begin at token ids; pass input_ids")
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        states, *length_logits = self._run(ENCODER, input_ids=input_ids.long(), attention_mask=mask.long())
        return states, length_logits[0] if length_logits else None

    def write_canvas(
        self,
        x_0: torch.Tensor,
        uniform: torch.Tensor,
        source: torch.Tensor,
        source_mask: torch.Tensor | None,
        canvas_mask: torch.Tensor | None,
        copied_ids: torch.LongTensor | None,
        options: SamplingOptions,
        on_draft=None,
    ) -> tuple[torch.LongTensor, torch.Tensor, torch.Tensor, None]:
        """As the model's, without states."""
        if on_draft is not None:
            raise ValueError("a streamer with put_draft needs each step's state, which graphs do not return; use put")
        repeats = len(x_0) // len(source)

        def repeat(part: torch.Tensor) -> torch.Tensor:
            return part if repeats == 1 else part.repeat_interleave(repeats, 0)

        if source_mask is None:
            source_mask = torch.ones(source.shape[:2], dtype=torch.long)
        mask = torch.ones(x_0.shape[:2], dtype=torch.long) if canvas_mask is None else canvas_mask
        ids, log_probs = self._run(
            canvas_graph(options.num_inference_steps),
            x_0=x_0,
            uniform=uniform[0],
            argmax_experts=torch.tensor(options.expert_selection == "argmax"),
            states=repeat(source),
            attention_mask=repeat(source_mask).long(),
            canvas_mask=mask.long(),
            token_bias=self.token_bias(options),
            **({} if copied_ids is None else {"copied_ids": repeat(copied_ids)}),
        )
        return *self.read_positions(ids, log_probs, canvas_mask, options), None

    def _run(self, name: str, **inputs: torch.Tensor) -> list[torch.Tensor]:
        feeds = {key: value.contiguous().numpy() for key, value in inputs.items()}
        return [torch.from_numpy(output) for output in self._sessions[name].run(None, feeds)]


def _import_onnxruntime():
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError("exported graphs need onnxruntime: pip install onnxruntime") from error
    return onnxruntime
