"""What every YAN class shares: how its weights begin, and how it is saved."""

import math
import os
import shutil
import tempfile
from pathlib import Path

import torch
from huggingface_hub import CommitInfo, HfApi, ModelCard
from torch import nn
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import cached_file, logging

from .configuration_yan import YanConfig
from .flow_layers_yan import YanModulation
from .layers_yan import YanCopyBias, YanEncoderLayer
from .lexicon_yan import FILE as LEXICON
from .lexicon_yan import copy_lexicon, place_of
from .mixers_yan import YanAttention, YanMambaDirection, YanNearIdentity
from .model_card_yan import model_card
from .velocity_field_yan import YanExperts

logger = logging.get_logger(__name__)

# Activations with act(x) - act(-x) = x, from which two rows of weights make an identity.
IDENTITY_PAIRS = {"gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "swish"}
# Initial standard deviation of token and position embeddings. Positions must live on the scale of latents and prior:
# the flow adds them to its state.
EMBEDDING_STD = 1.0
CARD = "README.md"
# Options of an upload, which `save_pretrained` and `push_to_hub` take.
UPLOAD_OPTIONS = (
    "repo_id",
    "token",
    "private",
    "revision",
    "commit_message",
    "commit_description",
    "create_pr",
    "tags",
)


def file_times(folder: Path) -> dict[str, int]:
    """When each file of a folder was last written; nothing for a folder that is not there."""
    files = folder.iterdir() if folder.is_dir() else ()
    return {file.name: file.stat().st_mtime_ns for file in files if file.is_file()}


class YanPreTrainedModel(PreTrainedModel):
    config_class = YanConfig
    config: YanConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _no_split_modules = [
        "YanEmbeddings",
        "YanEncoderLayer",
        "YanFlowLayer",
        "YanJointFlowLayer",
        "YanDecoderLayer",
        "YanExperts",
    ]
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": YanEncoderLayer, "attentions": YanAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)

        def linear_(weight: torch.Tensor, fan_in: int, scale: float = 1.0):
            std = self.config.initializer_range
            init.normal_(weight, std=scale * ((3 * fan_in) ** -0.5 if std is None else std))

        if isinstance(module, YanNearIdentity):
            linear_(module.weight, module.in_features, 0.5)
            init.copy_(module.weight, module.weight + torch.eye(module.in_features).to(module.weight))
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            linear_(module.weight, module.in_features)
            if module is self.get_output_embeddings() and not self.config.tie_word_embeddings:
                self._start_head_from_embeddings(module)
            if isinstance(module, YanModulation):
                chunks = torch.zeros(module.out_features // self.config.hidden_size, self.config.hidden_size)
                chunks[0::2] = 1
                init.copy_(module.bias, chunks.flatten())
                if self.config.flow_from_encoder:
                    init.zeros_(module.weight)
            if isinstance(module, YanCopyBias):
                init.zeros_(module.weight)
                init.copy_(module.bias, module.bias.new_tensor(module.starts))
        elif isinstance(module, nn.LayerNorm) and module is getattr(getattr(self, "decoder", None), "final_norm", None):
            self._start_tied_norm(module)
        elif isinstance(module, nn.Conv1d):
            # Each channel has its own filter, as wide as the kernel; torch's default variance, whatever
            # initializer_range.
            init.normal_(module.weight, std=(3 * module.kernel_size[0]) ** -0.5)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=EMBEDDING_STD)
        elif isinstance(module, YanExperts):
            width, inner = module.down_proj.shape[1:]
            copies = (
                self.config.prediction_type == "data"
                and self.config.hidden_act in IDENTITY_PAIRS
                and inner >= 2 * width
            )
            linear_(module.up_proj, width, 0.2 if copies else 1.0)
            linear_(module.down_proj, inner, 0.2 if copies else 1.0)
            if copies:
                pair = torch.zeros(inner, width).to(module.up_proj)
                pair[:width], pair[width : 2 * width] = torch.eye(width), -torch.eye(width)
                init.copy_(module.up_proj, module.up_proj + pair)
                init.copy_(module.down_proj, module.down_proj + pair.T)
            init.zeros_(module.up_bias)
            init.zeros_(module.down_bias)
        elif isinstance(module, YanMambaDirection):
            # As Mamba does it: decay rates 1 .. N in every channel, step sizes log-uniform in [0.001, 0.1].
            rates = torch.arange(1, module.A_log.shape[1] + 1, dtype=torch.float32)
            init.copy_(module.A_log, rates.log().expand_as(module.A_log))
            init.ones_(module.D)
            init.uniform_(module.dt_proj.weight, -(module.rank**-0.5), module.rank**-0.5)
            steps = torch.exp(torch.rand(len(module.D)) * math.log(100.0) + math.log(0.001)).clamp_min(1e-4)
            # The inverse of softplus.
            init.copy_(module.dt_proj.bias, steps + (-torch.expm1(-steps)).log())

    def _start_head_from_embeddings(self, head: nn.Linear) -> None:
        """
        Gives the output projection the token embeddings, scaled to logits of standard deviation 1 for a wrong token. A
        latent of YAN's own encoder keeps its token's embedding on the residual path, so that a new model gives clean
        text back before any training.
        """
        if self.config.encoder_config is None:
            scale = EMBEDDING_STD * self.config.hidden_size**0.5
            init.copy_(head.weight, self.get_input_embeddings().weight / scale)

    def _start_tied_norm(self, norm: nn.LayerNorm) -> None:
        """The same for the norm in front of the table itself; that of a hosted encoder has no known scale yet."""
        if self.config.encoder_config is None:
            init.constant_(norm.weight, 1 / (EMBEDDING_STD * self.config.hidden_size**0.5))

    def tie_head(self) -> None:
        """With `config.tie_word_embeddings`, names the table that the output projection shares; before `post_init`."""
        if self.config.tie_word_embeddings:
            table = self.get_input_embeddings().weight
            name = next(name for name, parameter in self.named_parameters() if parameter is table)
            self._tied_weights_keys = {"decoder.lm_head.weight": name}

    @torch.no_grad()
    def start_tied_head(self) -> None:
        """Scales what a tied output projection reads, so that logits of a wrong token have standard deviation 1."""
        if self.config.tie_word_embeddings:
            table = self.get_input_embeddings().weight
            self.decoder.final_norm.weight.fill_(1 / (table.std().item() * table.shape[1] ** 0.5))

    def save_pretrained(
        self, save_directory: str | os.PathLike, is_main_process: bool = True, *, push_to_hub: bool = False, **kwargs
    ) -> CommitInfo | None:
        """
        As in transformers, and complete: the code that loads the folder with `trust_remote_code=True` is saved with it,
        which the library does for a class with a single Auto class only, and never for pipelines; so are the lexicon
        beside the model, if any, and a README.md where there is none.

        Args:
            push_to_hub: uploads what was saved, with the options of the method of that name; `repo_id` is the folder's
                name by default.

        Returns:
            The commit, where something was uploaded.
        """
        folder = Path(save_directory)
        options = {name: kwargs.pop(name) for name in UPLOAD_OPTIONS if name in kwargs}
        options.setdefault("repo_id", folder.resolve().name)
        before = file_times(folder)
        # The library would upload before there are code and card.
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
        if not is_main_process:
            return None
        code = self._save_code(folder)
        copy_lexicon(self, folder)
        if not (folder / CARD).exists():
            (folder / CARD).write_text(model_card(self, options["repo_id"]), encoding="utf-8")
        if not push_to_hub:
            return None
        # What belongs to the model may have been there before; other files may, too.
        names = {name for name, time in file_times(folder).items() if before.get(name) != time}
        return self._upload(folder, names | code | {LEXICON, CARD}, own_card=CARD in before, **options)

    def push_to_hub(self, repo_id: str, *, max_shard_size: int | str = "50GB", **options) -> CommitInfo:
        """
        Uploads what `save_pretrained` writes. The Hub's README.md stays as it is where there is one.

        Args:
            repo_id: name of the repository, which is created if it is not there.
            **options: `token`, `private`, `revision`, `commit_message`, `commit_description`, `create_pr` and `tags`,
                as in transformers.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, max_shard_size=max_shard_size, repo_id=repo_id)
            return self._upload(Path(folder), set(file_times(Path(folder))), repo_id=repo_id, **options)

    def _upload(
        self,
        folder: Path,
        names: set[str],
        *,
        repo_id: str,
        own_card: bool = False,
        token: str | bool | None = None,
        private: bool | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
        commit_description: str | None = None,
        create_pr: bool = False,
        tags: str | list[str] | None = None,
    ) -> CommitInfo:
        """Uploads files of a folder; not its card where the Hub has one, unless it is the folder's own."""
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if not own_card and CARD in api.list_repo_files(repo_id):
            names = names - {CARD}
        if wanted := [*(self.model_tags or ()), *([tags] if isinstance(tags, str) else tags or ())]:
            card = ModelCard.load(folder / CARD)
            card.data.tags = [*dict.fromkeys([*(card.data.tags or ()), *wanted])]
            card.save(folder / CARD)
        if revision is not None and not revision.startswith("refs/pr"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        return api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            allow_patterns=sorted(names),
            revision=revision,
            commit_message=commit_message or f"Upload {type(self).__name__}",
            commit_description=commit_description,
            create_pr=create_pr,
        )

    def _save_code(self, folder: Path) -> set[str]:
        """Copies the code that belongs to every YAN into a folder; returns the files' names."""
        here = Path(__file__).parent
        files = {file.name: file for file in here.glob("*_yan.py")}
        # Inference Endpoints look for it under this name.
        if (here / "handler.py").is_file():
            files["handler.py"] = here / "handler.py"
        for name in (
            "configuration_yan.py",
            "pipeline_yan.py",
            "restoration_yan.py",
            "lexicon_yan.py",
            "text_changes_yan.py",
            "text_windows_yan.py",
            "words_yan.py",
            "handler.py",
        ):
            if name not in files:
                # Loaded as remote code, which caches only what this file imports; the rest is where the model came
                # from.
                place, revision = place_of(self) or (self.config.name_or_path, None)
                found = cached_file(place, name, revision=revision, _raise_exceptions_for_missing_entries=False)
                if found is None:
                    logger.warning(f"{name} was not found beside {place}; {folder} is saved without it")
                    continue
                files[name] = Path(found)
        for name, file in files.items():
            if file.resolve() != (folder / name).resolve():
                shutil.copyfile(file, folder / name)
        return set(files)
