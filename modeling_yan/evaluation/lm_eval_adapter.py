"""
A YAN in EleutherAI's lm-eval (https://github.com/EleutherAI/lm-evaluation-harness), as the model `yan`:

    yan lm-eval --model yan --model_args pretrained=outputs/yan --include_path my_tasks --tasks my_task

It reads a request's context as its source, and writes or scores the whole answer.
"""

from collections import Counter
from collections.abc import Sequence

# Fills lm-eval's table of models, which it does itself only while the table is empty.
import lm_eval.models  # noqa: F401
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import Collator, normalize_gen_kwargs, postprocess_generated_text
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm
from transformers.utils import logging

from modeling_yan.common.hub import read_model, read_tokenizer
from modeling_yan.data.tokenization import model_end_id, target_ids
from modeling_yan.evaluation.speed import default_device
from modeling_yan.evaluation.text_generation import able_to_pad, generate_texts
from modeling_yan.input_checks_yan import check_number
from modeling_yan.modeling_yan import YanForConditionalGeneration

logger = logging.get_logger(__name__)

NO_ROLLING = (
    "loglikelihood_rolling asks for the probability of a text without a source, token by token from the left; YAN "
    "gives those of whole answers to a source. Choose tasks of output_type generate_until, loglikelihood or "
    "multiple_choice"
)


def available_device(name: str | None) -> torch.device:
    """A device by torch's name, or the best there is for none; the CPU in place of a GPU that is not there."""
    if name is None:
        return default_device()
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        logger.warning(f"device={name} is not there, the CPU takes its place")
        return torch.device("cpu")
    return device


@register_model("yan")
class YanLM(LM):
    """
    lm-eval's view of a `YanForConditionalGeneration`. What a row gets depends on its text and `seed` alone, neither on
    the batch size nor on other rows.

    Args:
        pretrained: folder or Hub name, of a model or of an adapter of one.
        device: torch's name of a device; a GPU where there is one, by default. lm-eval's command asks for "cuda:0"
            unless told otherwise, and where there is none the CPU takes its place, with a warning.
        dtype: "float32", "bfloat16", …, or "auto" for what the weights were saved in.
        batch_size: rows that are answered at once; a number.
        max_batch_size: what lm-eval passes along; only for `batch_size="auto"`, which is refused.
        num_priors: draws of the noise that a probability is averaged over (`log_likelihood`).
        num_inference_steps: solver steps of answers and of probabilities; the model's own by default.
        max_source_length: tokens of a context, cut as the tokenizer cuts; the model's positions by default.
        seed: of the noise.
        trust_remote_code: whether code that comes with a tokenizer or a hosted encoder may run.

    Raises:
        ValueError: for a number that cannot be, and a folder whose model or tokenizer cannot be read.
        OSError: if there is no such model.
    """

    def __init__(
        self,
        pretrained: str,
        device: str | None = None,
        dtype: str = "float32",
        batch_size: int | str = 32,
        max_batch_size: int | None = None,
        num_priors: int = 8,
        num_inference_steps: int | None = None,
        max_source_length: int | None = None,
        seed: int = 0,
        trust_remote_code: bool = False,
    ):
        super().__init__()
        batch_size = int(batch_size) if str(batch_size).isdecimal() else batch_size
        numbers = {"batch_size": batch_size, "num_priors": num_priors}
        optional = {"num_inference_steps": num_inference_steps, "max_source_length": max_source_length}
        for name, value in (numbers | {n: v for n, v in optional.items() if v is not None}).items():
            check_number(name, value, allowed=lambda x: x >= 1, expected="a whole number above 0", whole=True)
        check_number("seed", seed, allowed=lambda x: x >= 0, expected="a whole number, not negative", whole=True)
        self.tokenizer = able_to_pad(read_tokenizer(pretrained, trust_remote_code=trust_remote_code))
        self.model = read_model(
            YanForConditionalGeneration, pretrained, trust_remote_code=trust_remote_code, dtype=dtype
        ).to(available_device(device))
        if num_inference_steps is not None:
            self.model.generation_config.num_inference_steps = num_inference_steps
        room = self.model.config.max_position_embeddings
        self.max_source_length = min(max_source_length or room, room)
        self.batch_size, self.num_priors, self.seed = batch_size, num_priors, seed
        self._device = self.model.device

    @property
    def end_id(self) -> int:
        """Id that ends the model's answers: its config's, or else the tokenizer's."""
        return model_end_id(self.model.config, self.tokenizer)

    def source(self, context: str) -> str:
        """A context as the model reads it. An empty one to which a tokenizer adds nothing is the end token."""
        return context if self.tokenizer(context)["input_ids"] else self.tokenizer.decode([self.end_id])

    def generators(self, seeds: Sequence[int]) -> list[torch.Generator]:
        """One for each row, so that a row gets what it would get in a batch of its own."""
        return [torch.Generator(self.device).manual_seed(seed) for seed in seeds]

    def write(self, contexts: Sequence[str], seeds: Sequence[int], **options) -> list[str]:
        """Answers to contexts, one batch, without white space around them."""
        return generate_texts(
            self.model,
            self.tokenizer,
            [self.source(context) for context in contexts],
            batch_size=len(contexts),
            max_source_length=self.max_source_length,
            generator=self.generators(seeds),
            **options,
        )

    def warn_of_cuts(self, contexts: Sequence[str]) -> None:
        """Says how many contexts are longer than the model reads."""
        cut = sum(len(ids) > self.max_source_length for ids in self.tokenizer(list(contexts))["input_ids"])
        if cut:
            logger.warning(
                f"{cut:,} of {len(contexts):,} contexts have more than {self.max_source_length} tokens and lose their "
                f"{'end' if self.tokenizer.truncation_side == 'right' else 'beginning'}"
            )

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """
        Answers to contexts.

        Args:
            requests: their `args` are a context and options: `until` (texts that end an answer, themselves left out),
                `max_gen_toks` (longest answer in tokens; a model of fixed canvases fills its own and is cut),
                `do_sample`, `temperature`, and every other option of YAN's `generate`.
            disable_tqdm: no progress bar.

        Raises:
            ValueError: for an option that YAN refuses.
        """
        # Repeats of a request are different draws where tokens are drawn, and equal where they are not.
        seen: Counter = Counter()
        rows = []
        for context, options in (request.args for request in requests):
            rows.append((context, options, seen[context, str(options)]))
            seen[context, str(options)] += 1
        self.warn_of_cuts([row[0] for row in rows])
        ordered = Collator(
            rows, sort_fn=lambda row: (-len(row[0]), row[0]), group_fn=lambda row: row[1], group_by="gen_kwargs"
        )
        longest = self.model.generation_options().longest
        fixed = self.model.generation_options().length_mode == "canvas"
        answers: list[str] = []
        with tqdm(total=len(rows), desc="generate_until", disable=disable_tqdm) as progress:
            for batch in ordered.get_batched(n=self.batch_size):
                contexts, all_options, repeats = zip(*batch, strict=True)
                options = normalize_gen_kwargs(all_options[0], longest)
                until, most = options.pop("until"), options.pop("max_gen_toks")
                if not options["do_sample"]:
                    options.pop("temperature", None)
                if not fixed:
                    options["max_new_tokens"] = min(most, longest)
                seeds = [self.seed + (repeat if options["do_sample"] else 0) for repeat in repeats]
                for context, given, text in zip(contexts, all_options, self.write(contexts, seeds, **options)):
                    text = postprocess_generated_text(self.cut(text, most), until, None)
                    self.cache_hook.add_partial("generate_until", (context, given), text)
                    answers.append(text)
                progress.update(len(batch))
        return ordered.get_original(answers)

    def cut(self, text: str, longest: int) -> str:
        """A text of at most so many tokens."""
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return text if len(ids) <= longest else self.tokenizer.decode(ids[:longest], skip_special_tokens=True).strip()

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """
        How probable continuations are.

        Args:
            requests: their `args` are a context and a continuation, which counts as a whole answer: without the white
                space around it that joins texts of left-to-right models, and with its end.
            disable_tqdm: no progress bar.

        Returns:
            Log-probability in nats, as `log_likelihood` gives it, and whether `generate` writes this very answer.

        Raises:
            ValueError: for a continuation that is longer than the model writes.
        """
        rows = [request.args for request in requests]
        self.warn_of_cuts([context for context, _ in rows])
        labels = target_ids(self.tokenizer, [continuation.strip() for _, continuation in rows], self.end_id)
        written: dict[str, str] = {}
        contexts = sorted({context for context, _ in rows}, key=lambda context: (-len(context), context))
        for start in range(0, len(contexts), self.batch_size):
            batch = contexts[start : start + self.batch_size]
            written |= zip(batch, self.write(batch, [self.seed] * len(batch)))
        ordered = Collator(
            [(*row, ids) for row, ids in zip(rows, labels, strict=True)],
            sort_fn=lambda row: (-len(row[0]) - len(row[1]), row[:2]),
        )
        scores: list[tuple[float, bool]] = []
        with tqdm(total=len(rows), desc="loglikelihood", disable=disable_tqdm) as progress:
            for batch in ordered.get_batched(n=self.batch_size):
                for (context, continuation, ids), score in zip(batch, self.score(batch)):
                    greedy = self.tokenizer.decode(ids, skip_special_tokens=True).strip() == written[context]
                    self.cache_hook.add_partial("loglikelihood", (context, continuation), (score, greedy))
                    scores.append((score, greedy))
                progress.update(len(batch))
        return ordered.get_original(scores)

    def score(self, rows: Sequence[tuple[str, str, list[int]]]) -> list[float]:
        """Log-probabilities of a batch of contexts, continuations and the ids of these."""
        sources = self.tokenizer(
            [self.source(context) for context, _, _ in rows],
            return_tensors="pt",
            padding=True,
            truncation=True,
            max_length=self.max_source_length,
        ).to(self.device)
        labels = pad_sequence([torch.tensor(ids) for _, _, ids in rows], batch_first=True, padding_value=-100)
        return self.model.log_likelihood(
            sources["input_ids"],
            sources["attention_mask"],
            labels.to(self.device),
            num_priors=self.num_priors,
            # A new one for each batch, so that the size of batches decides nothing.
            generator=self.generators([self.seed])[0],
        ).tolist()

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """
        Raises:
            NotImplementedError: always; it asks for what YAN does not have.
        """
        raise NotImplementedError(NO_ROLLING)
