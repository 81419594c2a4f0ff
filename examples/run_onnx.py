"""
Writes with the ONNX graphs of `conversion/export_yan.py`: numpy, onnxruntime and tokenizers are all this file needs.

    python examples/run_onnx.py --model outputs/onnx "name[Aromi], eatType[coffee shop], area[city centre]"
"""

import argparse
import itertools
import json
import sys
from pathlib import Path

import numpy as np
from onnxruntime import InferenceSession
from tokenizers import Tokenizer


class OnnxYan:
    """
    A YAN in three graphs.

    Args:
        folder: what `export_yan.py` wrote.
        providers: onnxruntime's execution providers; the CPU's by default.
    """

    def __init__(self, folder: str | Path, providers: tuple[str, ...] = ("CPUExecutionProvider",)):
        folder = Path(folder)
        settings = folder / "yan_export.json"
        if not settings.exists():
            raise ValueError(f"{folder} holds no yan_export.json; write it with conversion/export_yan.py")
        self.settings = json.loads(settings.read_text(encoding="utf-8"))
        if self.settings["format"] != "onnx":
            raise ValueError(f"{folder} was exported as {self.settings['format']}, not as onnx")
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._graphs = {
            name: InferenceSession(folder / f"{name}.onnx", providers=list(providers))
            for name in ("encoder", "step", "decoder")
        }

    def _run(self, name: str, **inputs) -> list[np.ndarray]:
        return self._graphs[name].run(None, inputs)

    def generate(
        self,
        input_ids: np.ndarray,
        attention_mask: np.ndarray | None = None,
        *,
        num_inference_steps: int | None = None,
        num_length_candidates: int | None = None,
        target_lengths: np.ndarray | None = None,
        max_new_tokens: int | None = None,
        prior_noise: np.ndarray | None = None,
        seed: int = 0,
    ) -> np.ndarray:
        """
        The model's `generate(expert_selection="argmax")`: the same tokens for the same `prior_noise`.

        Args:
            input_ids, attention_mask: sources (B, Lx), padded on either side.
            num_inference_steps, num_length_candidates: the model's own by default.
            target_lengths: (B,), instead of predicted ones.
            prior_noise: (B, at least the canvas length, d); drawn from `seed` by default.

        Returns:
            ids (B, L), cut after EOS and padded.
        """
        steps = num_inference_steps or self.settings["num_inference_steps"]
        candidates = num_length_candidates or self.settings["num_length_candidates"]
        longest = min(max_new_tokens or self.settings["max_length"], self.settings["max_length"])
        most = longest
        if prior_noise is not None:
            longest = min(longest, max(int(prior_noise.shape[1] / self.settings["canvas_ratio"]), 1))
        mask = np.ones_like(input_ids) if attention_mask is None else attention_mask.astype(np.int64)
        rows = len(input_ids)
        states, *length_logits = self._run("encoder", input_ids=input_ids.astype(np.int64), attention_mask=mask)
        if target_lengths is not None:
            lengths = np.broadcast_to(np.asarray(target_lengths), (rows,))[:, None]
        elif length_logits:
            lengths = np.argsort(-length_logits[0][:, :longest], axis=1, kind="stable")[:, :candidates] + 1
        else:
            lengths = np.full((rows, 1), longest)
        positions = self.settings["max_length"] if prior_noise is None else prior_noise.shape[1]
        lengths = np.minimum(np.ceil(lengths * self.settings["canvas_ratio"]).astype(int), positions)
        candidates, canvas = lengths.shape[1], int(lengths.max())
        width = self.settings["hidden_size"]
        if prior_noise is None:
            noise = np.random.default_rng(seed).standard_normal((rows, canvas, width), dtype=np.float32)
            prior_noise = self.settings["prior_std"] * noise
        x = np.repeat(prior_noise[:, :canvas].astype(np.float32), candidates, axis=0)
        canvas_mask = (np.arange(canvas) < lengths.reshape(-1, 1)).astype(np.int64)
        source = {
            "states": np.repeat(states, candidates, axis=0),
            "attention_mask": np.repeat(mask, candidates, axis=0),
        }
        times = np.linspace(0, 1, steps + 1, dtype=np.float32)
        experts = None
        for now, then in itertools.pairwise(times):
            t = np.full(len(x), now, dtype=np.float32)
            velocities, gate = self._run("step", x_t=x, t=t, canvas_mask=canvas_mask, **source)
            if experts is None:
                # Drawn once, from the gate at t = 0.
                experts = gate.argmax(-1)[..., None, None]
            x = x + (then - now) * np.take_along_axis(velocities, experts, axis=2).squeeze(2)
        ids, scores = self._run("decoder", latents=x, canvas_mask=canvas_mask)
        best = scores.reshape(rows, candidates).argmax(1)
        ids = ids.reshape(rows, candidates, canvas)[np.arange(rows), best]
        ends = np.isin(ids, self.settings["eos_token_ids"])
        first_end = np.where(ends.any(1), ends.argmax(1) + 1, canvas)
        cut = np.minimum(first_end, lengths[np.arange(rows), best])
        if self.settings["canvas_ratio"] > 1:
            # A canvas with room for blanks may hold more tokens than were asked for.
            cut = np.minimum(cut, most)
        ids = np.where(np.arange(canvas) < cut[:, None], ids, self.settings["pad_token_id"])
        return ids[:, : cut.max()]

    def write(self, texts: list[str], **options) -> list[str]:
        """Answers to texts; options as those of `generate`."""
        self.tokenizer.enable_padding(pad_id=self.settings["pad_token_id"])
        encoded = self.tokenizer.encode_batch(texts)
        ids, mask = (np.array([getattr(row, name) for row in encoded]) for name in ("ids", "attention_mask"))
        return [self.tokenizer.decode(row).strip() for row in self.generate(ids, mask, **options).tolist()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder that conversion/export_yan.py wrote")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("texts", nargs="+")
    arguments = parser.parse_args()
    try:
        model = OnnxYan(arguments.model)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    for text in model.write(arguments.texts, seed=arguments.seed):
        print(text)


if __name__ == "__main__":
    main()
