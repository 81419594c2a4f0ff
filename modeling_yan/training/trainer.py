"""The stock trainers with every loss term in their logs and, optionally, an average of the weights."""

import inspect
import itertools
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import psutil
import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.utils.data import SequentialSampler
from transformers import Seq2SeqTrainer, Trainer, TrainerCallback
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import has_length

from modeling_yan.common.building import check_embedding_rate
from modeling_yan.encoder_yan import YanHostedEncoder
from modeling_yan.losses_yan import LOSS_TERMS
from modeling_yan.training.card import may_write_card, write_card
from modeling_yan.training.checkpoints import last_complete_checkpoint

logger = logging.getLogger(__name__)
EMA_FILE = "ema.safetensors"


class EMACallback(TrainerCallback):
    """
    Exponential moving average of the trained weights. `YanTrainerMixin` saves it with each checkpoint and evaluates
    with it; it is restored on resume and becomes the model's weights when training ends. With `load_best_model_at_end`
    that is the average of the best checkpoint.

    Args:
        decay: share of the old average kept at each update; early updates use `(1 + n) / (10 + n)` where smaller.

    Attributes:
        resumed_from: the checkpoint that training goes on from; that of the output folder by default.

    Raises:
        ValueError: for a decay that is not between 0 and 1.
    """

    def __init__(self, decay: float = 0.999):
        if not 0 < decay < 1:
            raise ValueError(f"ema_decay={decay} must lie between 0 and 1")
        self.decay = decay
        self.updates = 0
        self.average: dict[str, torch.Tensor] = {}
        self.resumed_from: Path | None = None

    @staticmethod
    def _trained(model) -> dict[str, torch.Tensor]:
        return {name: p.data for name, p in model.named_parameters() if p.requires_grad}

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.average = {name: p.detach().clone().float() for name, p in self._trained(model).items()}
        self.updates = state.global_step
        saved = (self.resumed_from or Path(args.output_dir) / f"checkpoint-{state.global_step}") / EMA_FILE
        if state.global_step:
            if not saved.exists():
                raise ValueError(f"ema_decay was given, but the run to go on from has no {saved}; leave ema_decay out")
            self.average = {name: p.to(self.average[name].device) for name, p in load_file(saved).items()}

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, parameter in self._trained(model).items():
            self.average[name].lerp_(parameter.float(), 1 - decay)

    def save(self, folder: Path) -> None:
        """Writes the average into a checkpoint's folder, made if need be."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.average, folder / EMA_FILE)

    def on_train_end(self, args, state, control, model=None, **kwargs):
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            best = Path(state.best_model_checkpoint) / EMA_FILE
            # Where the folder is gone, Trainer has warned and kept the last weights.
            self.average = load_file(best) if best.exists() else self.average
        for name, parameter in self._trained(model).items():
            parameter.copy_(self.average[name])

    @contextmanager
    def applied(self, model):
        """The model with averaged weights, for the duration of the context."""
        trained = self._trained(model)
        kept = {name: p.clone() for name, p in trained.items()}
        try:
            for name, parameter in trained.items():
                parameter.copy_(self.average.get(name, parameter))
            yield
        finally:
            for name, parameter in trained.items():
                parameter.copy_(kept[name])


def memory_held(device: torch.device) -> int:
    """Bytes: the most that the GPU's allocator has held, or what the process holds now."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else psutil.Process().memory_info().rss


class RankSeedCallback(TrainerCallback):
    """
    Gives each process draws of its own. Trainer seeds all alike, which is right for weights and wrong for noise and
    times: row i of every process would get the same. A resumed run goes on with the states saved for each process.
    """

    def on_train_begin(self, args, state, control, **kwargs):
        if args.world_size > 1:
            torch.manual_seed(args.seed + args.process_index)


class EpochLengthSampler(LengthGroupedSampler):
    """
    Batches of rows of similar lengths, in an order that seed and epoch alone decide: the same in every process,
    whatever each has drawn, and after a resume.

    The batches themselves are shuffled. `LengthGroupedSampler` leaves them sorted, from long to short every 50, which
    teaches tasks of different lengths one after the other. As there, the longest batch comes first, where a want of
    memory shows at once.

    Args:
        batch_size: rows of similar length.
        together: batches that follow each other, those that all processes read at the same time.
        lengths: of all rows.
        seed: of the orders.
        epoch: tells which epoch it is when an order is drawn. A `set_epoch` would not be called for an epoch that two
            processes resume, and would keep a data set's own from being called.
    """

    def __init__(
        self, batch_size: int, lengths: Sequence[int], *, together: int = 1, seed: int, epoch: Callable[[], int]
    ):
        super().__init__(batch_size, lengths=lengths)
        self.together, self.seed, self.epoch = together, seed, epoch

    def __iter__(self) -> Iterator[int]:
        self.generator = torch.Generator().manual_seed(self.seed + self.epoch())
        rows, size = list(super().__iter__()), self.batch_size * self.together
        first, *others = [rows[start : start + size] for start in range(0, len(rows), size)]
        # What is left over stays at the end, or all batches behind it would be others.
        left_over = [others.pop()] if others and len(others[-1]) < size else []
        order = torch.randperm(len(others), generator=self.generator).tolist()
        return itertools.chain(first, *(others[place] for place in order), *left_over)


class KnownLengthsMixin:
    """
    Batches of similar lengths in the same order in every process and after a resume, also from a data set that says
    how long its rows are (`lengths`), before it is read. Rows that are evaluated keep their order.
    """

    def _get_train_sampler(self, train_dataset=None):
        rows = self.train_dataset if train_dataset is None else train_dataset
        lengths = getattr(rows, "lengths", None)
        if lengths is None or self.args.train_sampling_strategy != "group_by_length":
            sampler = super()._get_train_sampler(train_dataset)
            if not isinstance(sampler, LengthGroupedSampler):
                return sampler
            lengths = sampler.lengths
        return EpochLengthSampler(
            self.args.train_batch_size * self.args.gradient_accumulation_steps,
            lengths,
            together=self.args.world_size,
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
            # Within an epoch it is a fraction more; before the first update there is none.
            epoch=lambda: int(self.state.epoch or 0),
        )

    def _get_eval_sampler(self, eval_dataset):
        # Trainer would order these, too, by length, and what is written would be compared with other rows' references.
        if eval_dataset is None or not has_length(eval_dataset) or self.args.world_size > 1:
            return None
        return SequentialSampler(eval_dataset)


class YanTrainerMixin(KnownLengthsMixin):
    """
    Adds to a Trainer: the mean of each loss term since the last log entry, evaluation with averaged weights when an
    `EMACallback` is among the callbacks, draws of its own for each process, and a stop at the first loss that is not a
    number.

    Args:
        embedding_learning_rate: of the token embeddings, with the schedule of all others, whose rate it is by default.
            They begin at a standard deviation of 1 (`EMBEDDING_STD`), twenty times that of a GPT-2, and at the
            others' rate they stay what they were drawn as.
        encoder_learning_rate: of a pretrained encoder with its embeddings, in the same way. What has been learned
            before moves less than what begins.

    Attributes:
        data_names: what the model card calls the training data.
        writes_card: whether no README.md of somebody's own stood in the output folder when the trainer was made.
        scores: name of a split -> scores, for the model card; `score_splits` makes them.

    Raises:
        ValueError: for a learning rate of embeddings that come with a pretrained encoder, and for Trainer's
            `label_smoothing_factor`, which smooths next-token logits that YAN does not have.
    """

    def __init__(
        self,
        *args,
        embedding_learning_rate: float | None = None,
        encoder_learning_rate: float | None = None,
        **kwargs,
    ):
        self.embedding_learning_rate = embedding_learning_rate
        self.encoder_learning_rate = encoder_learning_rate
        self.data_names: list[str] = []
        self.scores: dict[str, dict] = {}
        self.forget_logs()
        super().__init__(*args, **kwargs)
        self.writes_card = may_write_card(self.args.output_dir)
        self.add_callback(RankSeedCallback())
        self._check_arguments()

    def _check_arguments(self) -> None:
        factor = self.args.label_smoothing_factor
        if factor:
            raise ValueError(
                f"label_smoothing_factor={factor} is Trainer's own loss over next-token logits; set label_smoothing in "
                "the config's training_config instead: --config_overrides "
                f"'{{training_config: {{label_smoothing: {factor}}}}}'"
            )
        model = self.accelerator.unwrap_model(self.model)
        check_embedding_rate(model.config, self.embedding_learning_rate)
        trained = {parameter.dtype for parameter in model.parameters() if parameter.requires_grad}
        if trained & {torch.bfloat16, torch.float16}:
            logger.warning(
                "weights of 16 bits swallow small updates; load the model with dtype=torch.float32 and train with "
                "--bf16, which multiplies in bfloat16 and keeps float32 weights"
            )

    def forget_logs(self) -> None:
        """Begins the sums of the next log entry anew, without what was counted since the last one."""
        self._term_sums: dict[str, torch.Tensor] = {}
        self._tokens: torch.Tensor | None = None
        # When the first batch was added, in seconds and in updates.
        self._since, self._since_update = 0.0, 0

    def _rates_of_their_own(self) -> dict[str, tuple[float, list[torch.nn.Parameter]]]:
        """Name of an option -> learning rate and parameters that do not have everybody's."""
        model, rates = self.accelerator.unwrap_model(self.model), {}
        if self.embedding_learning_rate is not None:
            table = model.get_input_embeddings().weight
            rates["embedding_learning_rate"] = (self.embedding_learning_rate, [table])
        if self.encoder_learning_rate is not None:
            hosted = [m for m in model.modules() if isinstance(m, YanHostedEncoder)]
            parameters = [p for module in hosted for p in module.backbone.parameters()]
            rates["encoder_learning_rate"] = (self.encoder_learning_rate, parameters)
        return rates

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        """As in Trainer; averaged weights go on from the same checkpoint."""
        folder = None if isinstance(resume_from_checkpoint, bool | None) else Path(resume_from_checkpoint)
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, EMACallback):
                callback.resumed_from = folder
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def create_optimizer(self, *args, **kwargs) -> torch.optim.Optimizer:
        """
        As in Trainer; parts with a learning rate of their own in groups of their own.

        Raises:
            ValueError: for a learning rate of a part that is not trained.
        """
        optimizer = super().create_optimizer(*args, **kwargs)
        for name, (rate, parameters) in self._rates_of_their_own().items():
            if any(group.get("option") == name for group in optimizer.param_groups):
                continue
            own, found = {id(parameter) for parameter in parameters}, False
            for group in list(optimizer.param_groups):
                others = [parameter for parameter in group["params"] if id(parameter) not in own]
                moved = [parameter for parameter in group["params"] if id(parameter) in own]
                if moved:
                    found, group["params"] = True, others
                    options = {key: value for key, value in group.items() if key != "params"}
                    optimizer.add_param_group({**options, "params": moved, "lr": rate, "option": name})
            if not found:
                raise ValueError(f"{name}={rate}, but that part is not trained; leave it out, or do not freeze it")
        return optimizer

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        if model.training:
            terms = {name: outputs[name] for name in LOSS_TERMS if outputs.get(name) is not None}
            self._refuse_nan(loss, terms)
            if outputs.get("expert_usage") is not None:
                terms |= {f"expert_usage_{k}": share for k, share in enumerate(outputs["expert_usage"])}
            self._record(terms, inputs)
        return (loss, outputs) if return_outputs else loss

    def _record(self, terms: dict[str, torch.Tensor], inputs: dict) -> None:
        """Adds a batch's terms, and its source and target tokens without padding, to what the next log entry gets."""
        for name, value in terms.items():
            self._term_sums[name] = self._term_sums.get(name, 0.0) + value.detach().float()
        if self._tokens is None:
            self._tokens = torch.zeros((), device=self.args.device)
            self._since, self._since_update = time.perf_counter(), self.state.global_step
        mask, labels = inputs.get("attention_mask"), inputs.get("labels")
        if mask is not None:
            self._tokens = self._tokens + mask.sum()
        if labels is not None:
            self._tokens = self._tokens + (labels != -100).sum()

    def _refuse_nan(self, loss: torch.Tensor, terms: dict[str, torch.Tensor]) -> None:
        # Trainer waits for the loss of every step anyway (logging_nan_inf_filter).
        if bool(loss.isfinite()):
            return
        terms = {name: value.item() for name, value in terms.items()}
        last = last_complete_checkpoint(self.args.output_dir)
        raise ValueError(
            f"the loss is {loss.item()} at step {self.state.global_step + 1} (terms: {terms}). No update was made with "
            f"it. Lower learning_rate or max_grad_norm, or use bf16 instead of fp16; the last checkpoint is {last}"
        )

    def save_model(self, output_dir: str | None = None, **kwargs) -> None:
        """As in Trainer; with an adapter go the generation options that were set for it, which PEFT leaves out."""
        model = self.accelerator.unwrap_model(self.model)
        if self.args.should_save and isinstance(model, PeftModel):
            # Before the rest, which may be pushed as soon as it is written.
            model.get_base_model().generation_config.save_pretrained(output_dir or self.args.output_dir)
        super().save_model(output_dir, **kwargs)

    def _save_checkpoint(self, model, trial):
        """As in Trainer; what could not be written to its end is removed, and the error says where to go on from."""
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        try:
            average = self._average()
            if average is not None and self.args.should_save:
                # Before Trainer's state, whose presence says that the checkpoint was written to its end.
                average.save(folder)
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            last = last_complete_checkpoint(folder.parent)
            raise OSError(
                f"{folder} could not be written and was removed ({error}). Training can go on from {last} with "
                "--resume_from_checkpoint last"
            ) from error

    def get_decay_parameter_names(self, model) -> list[str]:
        """
        As in Trainer, and not Mamba's `A_log` and `D`: decay would pull decay rates to 1 and skip connections to 0.
        """
        names = super().get_decay_parameter_names(model)
        return [name for name in names if name.rsplit(".", 1)[-1] not in ("A_log", "D")]

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if "loss" in logs and self._term_sums:
            # Terms of micro-batches add up to their batch's, so the divisor is the number of updates.
            updates = max(self.state.global_step - self._since_update, 1)
            for name, total in self._term_sums.items():
                logs[name] = round(self.accelerator.reduce(total, "sum").item() / updates, 5)
            tokens = self.accelerator.reduce(self._tokens, "sum").item()
            logs["tokens_per_second"] = round(tokens / (time.perf_counter() - self._since), 1)
            logs["memory_mib"] = round(memory_held(self.args.device) / 2**20, 1)
            self.forget_logs()
        super().log(logs, *args, **kwargs)

    def last_terms(self) -> dict[str, float]:
        """Loss terms and the shares of the experts in the last log entry of training; none if nothing was logged."""
        logged = [entry for entry in self.state.log_history if "loss" in entry]
        last = logged[-1] if logged else {}
        return {n: value for n, value in last.items() if n in LOSS_TERMS or n.startswith("expert_usage_")}

    def create_model_card(self, *args, **kwargs) -> None:
        """
        As in Trainer, which calls it when it pushes, with the same arguments; the card says what the model is and how
        it was trained (`write_card`), and names the model that training started from, where there was one.
        """
        if not self.is_world_process_zero():
            return
        given = inspect.signature(Trainer.create_model_card).bind(self, *args, **kwargs).arguments
        del given["self"]
        started_from = getattr(self.accelerator.unwrap_model(self.model).config, "name_or_path", None)
        if started_from and Path(started_from) != Path(self.args.output_dir):
            given.setdefault("finetuned_from", started_from)
        write_card(self, **given)

    def _average(self) -> EMACallback | None:
        return next((c for c in self.callback_handler.callbacks if isinstance(c, EMACallback) and c.average), None)

    def evaluation_weights(self):
        """A context in which the model has the weights that evaluation uses: averaged ones, where there are."""
        average = self._average()
        return nullcontext() if average is None else average.applied(self.accelerator.unwrap_model(self.model))

    def evaluation_loop(self, *args, **kwargs):
        with self.evaluation_weights():
            return super().evaluation_loop(*args, **kwargs)


class KnownLengthsTrainer(KnownLengthsMixin, Trainer):
    """The stock Trainer for baselines."""


class YanTrainer(YanTrainerMixin, Trainer):
    """For stage 1 and the classification heads."""


class YanSeq2SeqTrainer(YanTrainerMixin, Seq2SeqTrainer):
    """For stages 2 and 3, with `predict_with_generate`."""
