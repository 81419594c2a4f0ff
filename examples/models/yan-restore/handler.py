"""
What Hugging Face Inference Endpoints run: they import this file from the model's folder, and call `EndpointHandler`.

    {"inputs": "a text", "parameters": {"num_inference_steps": 3, "seed": 0}} -> [{"generated_text": "…"}]
"""

import torch
from transformers import pipeline

# Texts of one request that are written together.
BATCH_SIZE = 32
# What the endpoint and its pipeline pass along themselves, and a config, which JSON cannot hold.
NOT_OF_A_REQUEST = (
    "self",
    "text_inputs",
    "inputs",
    "batch_size",
    "num_workers",
    "prompt_text",
    "model_inputs",
    "input_ids",
    "attention_mask",
    "generation_config",
)


class EndpointHandler:
    """
    Args:
        path: the model's folder. Its code runs, as this file does.
    """

    def __init__(self, path: str = ""):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.pipeline = pipeline("text2text-generation", model=path, trust_remote_code=True, device=device)

    def __call__(self, data: dict) -> list[dict[str, str]]:
        """
        Args:
            data: `inputs`, a text or a list of texts, and `parameters`: options of `generate()`, and `seed`, which
                decides everything random in the answers of this call.

        Returns:
            `{"generated_text": text}` for each text, or with `num_return_sequences` for each of its answers.

        Raises:
            ValueError: for another key, inputs that are no texts, a seed that is none, parameters that are the
                endpoint's own, and options that `generate()` refuses, naming them.
        """
        inputs, options = self._read(data)
        if not inputs:
            return []
        seed = options.pop("seed", None)
        if seed is not None:
            options["generator"] = torch.Generator(self.pipeline.model.device).manual_seed(seed)
        answers = self.pipeline(inputs, batch_size=BATCH_SIZE, **options)
        return [record for records in answers for record in records]

    @staticmethod
    def _read(data: dict) -> tuple[list[str], dict]:
        """Texts and options of a request."""
        unknown = sorted(set(data) - {"inputs", "parameters"})
        if unknown or "inputs" not in data:
            raise ValueError(f"a request has the keys inputs and parameters, got {sorted(data)}")
        inputs, options = data["inputs"], data.get("parameters") or {}
        texts = [inputs] if isinstance(inputs, str) else inputs
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"inputs={inputs!r:.60} must be a text or a list of texts")
        if not isinstance(options, dict):
            raise ValueError(f"parameters={options!r:.60} must be keys and values, options of generate() and seed")
        for name in NOT_OF_A_REQUEST:
            if name in options:
                raise ValueError(
                    f"parameters: {name}={options[name]!r:.60} is not for a request to set; leave it out, and name "
                    "each option of generate() by itself"
                )
        seed = options.get("seed")
        if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63):
            raise ValueError(f"seed={seed!r} must be a whole number from 0 to below 2**63")
        return texts, dict(options)
