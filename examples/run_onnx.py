r"""
Writes with the ONNX graphs of `conversion/export_yan.py`: numpy, onnxruntime and tokenizers are all this file needs.

    python conversion/export_yan.py --model examples/models/yan-e2e --output_dir outputs/onnx
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

    Raises:
        ValueError: for a folder that is no export to ONNX.
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

        1. Encode the sources.
        2. Decide the canvas lengths, and draw the prior.
        3. Solve the ODE from noise to latents.
        4. Decode, keep the best candidate, cut after EOS and pad.

        Args:
            input_ids, attention_mask: sources (B, Lx), padded on either side.
            num_inference_steps, num_length_candidates: the model's own by default.
            target_lengths: (B,), instead of predicted ones.
            max_new_tokens: longest answer; the model's own limit by default.
            prior_noise: (B, at least the canvas length, d); drawn from `seed` by default.

        Returns:
            ids (B, L), cut after EOS and padded.
        """
        settings = self.settings
        longest = min(max_new_tokens or settings["max_length"], settings["max_length"])
        mask = np.ones_like(input_ids) if attention_mask is None else attention_mask.astype(np.int64)
        # 1.
        states, *length_logits = self._run("encoder", input_ids=input_ids.astype(np.int64), attention_mask=mask)
        # 2.
        candidates = num_length_candidates or settings["num_length_candidates"]
        room = None if prior_noise is None else prior_noise.shape[1]
        lengths = self._canvas_lengths(len(mask), length_logits, target_lengths, longest, candidates, room)
        rows, candidates = lengths.shape
        canvas_mask = (np.arange(lengths.max()) < lengths.reshape(-1, 1)).astype(np.int64)
        if prior_noise is None:
            shape = (rows, lengths.max(), settings["hidden_size"])
            prior_noise = settings["prior_std"] * np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
        x_0 = np.repeat(prior_noise[:, : lengths.max()].astype(np.float32), candidates, axis=0)
        # 3.
        source = {"states": np.repeat(states, candidates, 0), "attention_mask": np.repeat(mask, candidates, 0)}
        steps = num_inference_steps or settings["num_inference_steps"]
        latents = self._solve(x_0, steps, canvas_mask=canvas_mask, **source)
        # 4.
        ids, scores = self._run("decoder", latents=latents, canvas_mask=canvas_mask)
        best = np.arange(rows) * candidates + scores.reshape(rows, candidates).argmax(1)
        return self._finish(ids[best], lengths.reshape(-1)[best], longest)

    def write(self, texts: list[str], **options) -> list[str]:
        """Answers to texts; options as those of `generate`."""
        self.tokenizer.enable_padding(pad_id=self.settings["pad_token_id"])
        encoded = self.tokenizer.encode_batch(texts)
        ids, mask = (np.array([getattr(row, name) for row in encoded]) for name in ("ids", "attention_mask"))
        return [self.tokenizer.decode(row).strip() for row in self.generate(ids, mask, **options).tolist()]

    def _run(self, name: str, **inputs) -> list[np.ndarray]:
        return self._graphs[name].run(None, inputs)

    def _canvas_lengths(self, rows: int, logits, target_lengths, longest: int, candidates: int, room) -> np.ndarray:
        """Positions (B, candidates) for texts of at most `longest` tokens, at most `room` where noise is given."""
        ratio = self.settings["canvas_ratio"]
        if room is not None:
            longest = min(longest, max(int(room / ratio), 1))
        if target_lengths is not None:
            lengths = np.broadcast_to(np.asarray(target_lengths), (rows,))[:, None]
        elif logits:
            lengths = np.argsort(-logits[0][:, :longest], axis=1, kind="stable")[:, :candidates] + 1
        else:
            lengths = np.full((rows, 1), longest)
        return np.minimum(np.ceil(lengths * ratio).astype(int), room or self.settings["max_length"])

    def _solve(self, x: np.ndarray, steps: int, **condition) -> np.ndarray:
        """Euler steps of each position's expert, which is chosen once, from the gate at t = 0: states (N, L, d)."""
        experts = None
        for now, then in itertools.pairwise(np.linspace(0, 1, steps + 1, dtype=np.float32)):
            t = np.full(len(x), now, dtype=np.float32)
            velocities, gate = self._run("step", x_t=x, t=t, **condition)
            if experts is None:
                experts = gate.argmax(-1)[..., None, None]
            x = x + (then - now) * np.take_along_axis(velocities, experts, axis=2).squeeze(2)
        return x

    def _finish(self, ids: np.ndarray, lengths: np.ndarray, longest: int) -> np.ndarray:
        """Ids (B, L) cut after EOS and at the ends of their canvases (B,), padded."""
        positions = np.arange(ids.shape[1])
        ends = np.isin(ids, self.settings["eos_token_ids"])
        cut = np.minimum(np.where(ends.any(1), ends.argmax(1) + 1, ids.shape[1]), lengths)
        if self.settings["canvas_ratio"] > 1:
            # A canvas with blanks may hold more tokens than were asked for.
            cut = np.minimum(cut, longest)
        return np.where(positions < cut[:, None], ids, self.settings["pad_token_id"])[:, : cut.max()]


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
