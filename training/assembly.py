"""From flags to parts: the model with its adapters and its trainable set, its tokenizer, its data."""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from datasets.collate import CorpusDataset, SampleProcessor
from datasets.conversation import template_named
from datasets.mixture import build_mixture
from datasets.room import describe_cost
from datasets.tokenization import MoraTokenizer, load_tokenizer
from model.adapters import add_lora, add_token_rows, set_trainable
from model.checkpoints import (
    Adapters,
    LoadReport,
    Provenance,
    load_any,
    network_of,
    read_config,
    require_own_tokenizer,
    told_backbone,
)
from model.initialization import fill_rows
from model.mora import MoraModel
from training.settings import PROGRAMS, DataSettings, ModelSettings, TrainableSettings
from utils.errors import ConfigError, TokenizerError
from utils.files import write_json
from utils.flags import flags_of
from utils.hub import resolve_folder
from utils.video import frame_size


@dataclass
class Parts:
    """A model that is ready to train.

    Attributes:
        model: on the CPU, with adapters, ``requires_grad`` set.
        tokenizer: has every token the model needs.
        trained: names of the parameters that learn.
        report: what loading the base did.
        provenance: what weights trained in this model belong to.
    """

    model: MoraModel
    tokenizer: MoraTokenizer
    trained: list[str]
    report: LoadReport
    provenance: Provenance

    def describe(self) -> str:
        """A few lines for the log: what was loaded, what learns."""
        total = sum(parameter.numel() for parameter in self.model.parameters())
        learning = sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)
        groups: dict[str, int] = {}
        for name in self.trained:
            group = "LoRA" if ".lora_" in name else ".".join(name.split(".")[:2])
            groups[group] = groups.get(group, 0) + self.model.get_parameter(name).numel()
        listed = ", ".join(f"{group} {count:,}" for group, count in groups.items())
        config = self.model.config
        chosen = ", ".join(f"{n} {getattr(config, n)}" for n in ("visual_mode", "loc_mode", "template", "answer_style"))
        parts = [part for part in config.sub_configs if part != "sam_config"]
        modes = [f"{part.removesuffix('_config')} {getattr(config, part)._attn_implementation}" for part in parts]
        attention = f"attention: {', '.join(modes)}"
        return f"{self.report}\n{chosen}\n{attention}\n{learning:,} of {total:,} parameters learn ({listed})"

    def write(self, folder: Path) -> None:
        """``config.json`` and ``tokenizer/`` in a checkpoint, so that it says which network it holds."""
        write_json(folder / "config.json", json.loads(self.model.config.to_json_string()))
        self.tokenizer.save(folder / "tokenizer")


def base_loc_mode(folder: Path) -> str:
    """The [LOC] head a base model has: "none", "global" or "frame"."""
    return read_config(folder).get("loc_mode", "none") if (folder / "config.json").is_file() else "none"


def require_backbone(found: str | None, flags: ModelSettings) -> None:
    """Refuse a base for which there is another program.

    Args:
        found: the backbone of the base; None if that is not known yet.
        flags: which base; their class says the backbone.

    Raises:
        ConfigError: naming the right program.
    """
    if None not in (found, flags.backbone) and found != flags.backbone:
        raise ConfigError(
            f"--version {flags.version}: its backbone is {found}, and this program trains {flags.backbone}; use "
            f"{PROGRAMS[found].program}"
        )


def config_overrides(flags: ModelSettings, base: Path) -> dict[str, Any]:
    """Fields of :class:`model.config.MoraConfig` that the flags set; what no flag names stays that of ``base``, a
    folder."""
    overrides = {about.network: getattr(flags, name) for name, about in flags_of(flags) if type(about.network) is str}
    overrides["loc_mode"] = "none" if flags.seg_only else flags.loc_mode
    if overrides["loc_mode"] is None:
        stored = base_loc_mode(base)
        overrides["loc_mode"] = stored if stored != "none" else "global"
    return {name: value for name, value in overrides.items() if value is not None}


def open_tokenizer(model: MoraModel, folder: Path, fresh: bool = False) -> MoraTokenizer:
    """The base's tokenizer, with [LOC] added if the model has a head for it and the tokenizer has not met it; the
    model's token ids follow, and its vocabulary where it has no free rows for new tokens.

    Args:
        model: changed in place.
        folder: of the base.
        fresh: the model has yet to learn [SEG], which is added, too.

    Raises:
        TokenizerError: it lacks [SEG], has fewer entries than the model expects without saying why, or lacks what the
            template is made of.
    """
    config = model.config
    tokenizer = load_tokenizer(folder, config.tokenization)
    require_own_tokenizer(folder, tokenizer.digest())
    form = template_named(config.template)
    marks = dict.fromkeys(re.findall(r"<\|\w+\|>", "".join([form.opening, form.ask, form.image, *form.wrap])))
    if missing := [mark for mark in marks if tokenizer.find(mark) is None]:
        raise TokenizerError(f"{folder}: the tokenizer lacks {', '.join(missing)}, of which the template "
                             f"{config.template} is made; take the one that belongs to the base")  # fmt: skip
    config.loc_token_id = None
    names = ["seg_token"] if config.loc_mode == "none" else ["seg_token", "loc_token"]
    before = len(tokenizer)
    tokenizer.add_tokens([getattr(config, name) for name in names if fresh or name == "loc_token"])
    for name in names:
        setattr(config, f"{name}_id", tokenizer.id_of(getattr(config, name)))
    if config.seg_token_id == config.loc_token_id:
        raise TokenizerError(f"{folder}: {config.seg_token} and {config.loc_token} have one id, {config.seg_token_id}")
    rows, entries = model.get_input_embeddings().weight.shape[0], len(tokenizer)
    if entries > rows + max(1, entries - before):
        raise TokenizerError(
            f"{folder}: the tokenizer has {entries} entries, the model {rows} rows; they do not belong together"
        )
    if before < min(entries, rows):
        fill_rows(*model.backbone.vocabulary, before, min(entries, rows))
    if entries > rows:
        model.resize_token_embeddings(entries)
    return tokenizer


def choose_attention(wanted: str, dtype: torch.dtype, device: torch.device) -> str:
    """Attention of the language model: ``wanted``, or for "auto" flash-attn where it is installed and can work."""
    if wanted != "auto":
        return wanted
    usable = device.type == "cuda" and dtype != torch.float32 and importlib.util.find_spec("flash_attn") is not None
    return "flash_attention_2" if usable else "sdpa"


def build_parts(
    flags: ModelSettings,
    trainable: TrainableSettings,
    seed: int,
    dtype: torch.dtype,
    attention: str | None = None,
    digest: bool = True,
) -> Parts:
    """Load the base, fit tokens, add adapters, choose what learns.

    Args:
        flags: which base, and what is to be different from it.
        trainable: adapters, and what learns.
        seed: of fresh weights.
        dtype: of the weights.
        attention: of the language model; None: transformers' own choice.
        digest: note what the base is, which reads all of its bytes; else ``provenance.base`` is {}.

    Raises:
        CheckpointError: the base cannot be loaded, or has tensors without a place.
        TokenizerError: see :func:`open_tokenizer`.
        ConfigError: flags that contradict each other or name nothing.
    """
    folder = resolve_folder(flags.version)
    require_backbone(told_backbone(read_config(folder)), flags)
    overrides = config_overrides(flags, folder)
    model, report = load_any(
        folder,
        flags.vision_pretrained,
        flags.vision_tower,
        dtype=dtype,
        attn_implementation=attention,
        seed=seed,
        allow_missing=flags.allow_missing,
        allow_unexpected=[*flags.allow_unexpected, *(["loc_head.*"] if flags.seg_only else [])],
        digest=digest,
        **overrides,
    )
    require_backbone(model.config.backbone, flags)
    stored = read_config(folder)
    for name in sorted(overrides.keys() - {"loc_mode"}):
        before, now = stored.get(name), getattr(model.config, name)
        if before not in (None, now):
            report.notes.append(f"{name}: the base was trained with {before!r}, here it is {now!r}")
    tokenizer = open_tokenizer(model, folder, fresh=any(n.startswith("text_hidden_fcs") for n in report.initialised))
    if trainable.token_rows == "new":
        add_token_rows(model, [each for each in model.token_ids() if each is not None])
    adapters = Adapters.of_flags(trainable.lora_r, trainable.lora_alpha, trainable.lora_target_modules)
    if adapters is not None:
        add_lora(model, adapters.r, adapters.alpha, trainable.lora_dropout, adapters.targets, seed=seed)
    trained = set_trainable(model, trainable.trainable)
    network = network_of(model.config)
    provenance = Provenance(network, adapters, trainable.trainable, report.digests, flags.version, tokenizer.digest(),
                            token_rows=trainable.token_rows)  # fmt: skip
    return Parts(model, tokenizer, trained, report, provenance)


def build_dataset(data: DataSettings, seed: int, parts: Parts) -> CorpusDataset:
    """The mixture of corpora, processed as this model wants it.

    Raises:
        DataError: a corpus is missing or has mistakes; all of them are listed.
        ConfigError: unknown corpora or rates that do not fit.
    """
    config = parts.model.config
    mixture = build_mixture(
        data.dataset, data.sample_rates, data.dataset_dir, seed, data.num_frames, data.max_questions,
        data.frame_sampling, data.on_problem,
    )  # fmt: skip
    processor = SampleProcessor(
        parts.tokenizer,
        sam_pixels=parts.model.sam.pixel_rule,
        pixels=config.pixel_rule,
        marks=config.frame_marks,
        template=config.template,
        answer_style=config.answer_style,
        with_loc=config.loc_mode != "none",
        loc_for_referring=data.loc_for_referring,
        outside_window=data.outside_window,
        mask_frames=data.mask_frames,
        max_length=data.model_max_length,
    )
    return CorpusDataset(mixture, processor, seed)


def describe_dataset(dataset: CorpusDataset) -> str:
    """How much each corpus holds, and what frames of the first clip cost the language model, for the log."""
    mixture, processor = dataset.source, dataset.processor
    lines = [
        f"{name}: {len(corpus)} videos, {sum(len(record.questions) for record in corpus)} questions, "
        f"{rate:.0%} of the samples"
        for name, corpus, rate in zip(mixture.names, mixture.corpora, mixture.rates)
    ]
    if processor.pixels.resize == "area":
        size = frame_size(mixture.corpora[0][0].frame_paths[0])
        lines.append(describe_cost(*size, processor.pixels, processor.marks))
    return "\n".join(lines)
