"""Which weights learn: the default set, patterns, LoRA on the language model's attention, single rows of its words."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher
from fnmatch import fnmatchcase

import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from model.mora import MoraModel
from utils.errors import ConfigError

LORA_MARK = "lora_"

ROWS = ".token_rows"
"""How the names of rows that learn apart from their matrix end."""


class TokenRows(nn.Module):
    """Word embeddings or a language head of which some rows learn, beside the matrix, which stays as it is.

    peft's wrapper of the same purpose makes a new matrix in every pass and a gradient of its size; here neither exists.

    Args:
        base_layer: an ``nn.Embedding`` or an ``nn.Linear`` without bias, weight [V, D].
        ids: whose rows, below V.
        rows: [n, D], of another of these, to be one with it; None: a copy of the matrix's.
    """

    def __init__(self, base_layer: nn.Module, ids: Sequence[int], rows: nn.Parameter | None = None):
        super().__init__()
        self.base_layer = base_layer
        self.token_rows = nn.Parameter(base_layer.weight.detach()[list(ids)].clone()) if rows is None else rows
        self.register_buffer("ids", torch.tensor(ids, device=base_layer.weight.device), persistent=False)

    @property
    def weight(self) -> nn.Parameter:
        """The matrix, in which the rows are not those that learn."""
        return self.base_layer.weight

    def forward(self, given: Tensor) -> Tensor:
        """Ids [...] to embeddings [..., D], or states [..., D] to logits [..., V]."""
        made = self.base_layer(given)
        if isinstance(self.base_layer, nn.Linear):
            return made.index_copy(-1, self.ids, F.linear(given, self.token_rows))
        for number, row in zip(self.ids, self.token_rows):
            made = torch.where((given == number)[..., None], row, made)
        return made

    def merged(self) -> nn.Module:
        """The layer with the rows in its matrix."""
        self.base_layer.weight[self.ids] = self.token_rows
        return self.base_layer


def _default_patterns(model: MoraModel) -> list[str]:
    """What MoRA trains: LoRA, both vocabulary matrices or their new rows, the [SEG] read-out, the [LOC] head, the
    segmenter's decoder."""
    parts = (*model.backbone.vocabulary_parts, "text_hidden_fcs", "loc_head", f"sam.{model.sam.decoder_part}")
    return [f"*{LORA_MARK}*", *(f"{part}.*" for part in parts)]


def set_trainable(model: MoraModel, spec: str = "default") -> list[str]:
    """Let exactly some parameters learn and freeze all others.

    LoRA matrices are named by patterns like any other parameter ("default" and "all" include them). SAM's matrix of
    random positions is a constant and never learns, nor does a matrix with :class:`TokenRows`; with LoRA, a wrapped
    matrix itself stays frozen under "default".

    Args:
        model: changed in place.
        spec: "default", "all", or patterns of parameter names as for file names, joined by "||"; "default" may be one
            of them ("default||projector.*").

    Returns:
        Names of the trained parameters, in model order.

    Raises:
        ConfigError: a pattern that matches no parameter, with the closest names there are.
    """
    parts = [part.strip() for part in spec.split("||") if part.strip()]
    found = {
        part: _matching(model, _default_patterns(model) if part == "default" else ["*" if part == "all" else part])
        for part in parts
    }
    unmatched = [part for part in parts if not found[part]]
    if unmatched or not parts:
        what = f"no parameter matches {', '.join(map(repr, unmatched))}" if unmatched else "it names nothing"
        raise ConfigError(f"--trainable {spec!r}: {what}; {_closest(model, unmatched)}")
    chosen = set().union(*found.values())
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def _matching(model: MoraModel, patterns: Sequence[str]) -> list[str]:
    """Names of parameters any pattern matches; never the segmenter's constants and matrices whose rows learn apart."""
    constants = {f"sam.{name}" for name in model.sam.constants}
    constants |= {f"{name}.base_layer.weight" for name, m in model.named_modules() if isinstance(m, TokenRows)}
    return [
        name
        for name, parameter in model.named_parameters()
        if any(fnmatchcase(name, pattern) for pattern in patterns)
        and parameter.is_floating_point()
        and name not in constants
    ]


def _closest(model: nn.Module, patterns: Sequence[str], show: int = 12) -> str:
    """How many parameter names there are (layer numbers replaced by ``*``), and those most like the patterns."""
    names = list(
        dict.fromkeys(
            ".".join("*" if part.isdigit() else part for part in name.split("."))
            for name, _ in model.named_parameters()
        )
    )

    def likeness(name: str) -> float:
        words = name.split(".")
        parts = [".".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, len(words) + 1)]
        return max(
            (SequenceMatcher(None, pattern.strip("*."), part).ratio() for pattern in patterns for part in parts),
            default=0.0,
        )

    best = sorted(names, key=likeness, reverse=True)[:show]
    listed = "\n".join(f"  {name}" for name in names if name in best)
    return f"of {len(names)} names (* stands for any layer's number) the {len(best)} closest are:\n{listed}"


def add_lora(
    model: MoraModel,
    r: int = 8,
    alpha: float = 16,
    dropout: float = 0.05,
    targets: Sequence[str] = ("q_proj", "v_proj"),
    seed: int = 0,
) -> list[str]:
    """Put low-rank adapters beside projections of the language model only (Hu et al. 2021), in place.

    A wrapped matrix moves to ``...q_proj.base_layer.weight``; its adapters are ``...q_proj.lora_A.default.weight`` [r,
    in] and ``...q_proj.lora_B.default.weight`` [out, r], the latter zero, so that nothing changes until they learn.

    Args:
        model: changed in place; the towers and SAM have projections of the same names and are not touched.
        r: rank.
        alpha: the adapters' product is scaled by alpha / r.
        dropout: on the adapters' input, in training.
        targets: last names of the linear layers.
        seed: of the adapters' weights.

    Returns:
        Names of the adapters' parameters.

    Raises:
        ConfigError: a target no layer is called, or adapters are there already.
    """
    if any(LORA_MARK in name for name, _ in model.named_parameters()):
        raise ConfigError("the language model has LoRA adapters already; merge them before adding new ones")
    decoder = model.backbone.decoder
    linear = {name.rsplit(".", 1)[-1] for name, m in decoder.named_modules() if isinstance(m, nn.Linear)}
    missing = [target for target in targets if target not in linear]
    if missing or not targets:
        raise ConfigError(f"--lora_target_modules {','.join(missing)}: not in the language model; use {sorted(linear)}")
    config = LoraConfig(r=r, lora_alpha=alpha, lora_dropout=dropout, bias="none", target_modules=list(targets))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, decoder)
    for module in decoder.modules():
        if isinstance(module, LoraLayer):
            module.train(model.training)  # born in train mode, whose dropout has no place in a model in eval mode
    return [name for name, _ in model.named_parameters() if LORA_MARK in name]


def add_token_rows(model: MoraModel, ids: Sequence[int]) -> None:
    """Let only the rows of some tokens learn, in the word embeddings and in the language head, in place.

    A matrix moves to ``...embed_tokens.base_layer.weight``; its rows are ``...embed_tokens.token_rows`` [n, D], with
    the values that the matrix has. Matrices that are one have rows that are one.

    Args:
        model: changed in place.
        ids: of the tokens.
    """
    embeddings, head = model.backbone.vocabulary
    first = TokenRows(embeddings, ids)
    second = TokenRows(head, ids, first.token_rows if head.weight is embeddings.weight else None)
    for name, module in zip(model.backbone.vocabulary_parts, (first, second)):
        _replace(model, name, module)


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put another module in the place of a dotted name."""
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)


@torch.no_grad()
def merge_adapters(model: MoraModel) -> int:
    """Add the adapters' products to the matrices they stand beside, put rows that were trained apart into theirs, and
    remove both, in place.

    Args:
        model: changed in place; parameter names are afterwards what they were before :func:`add_lora` and
            :func:`add_token_rows`.

    Returns:
        How many matrices were merged; 0 if there was nothing.
    """
    wrapped = [(name, module) for name, module in model.named_modules() if isinstance(module, (LoraLayer, TokenRows))]
    for name, module in wrapped:
        if isinstance(module, LoraLayer):
            module.merge()
        _replace(model, name, module.merged() if isinstance(module, TokenRows) else module.get_base_layer())
    if hasattr(model.backbone.decoder, "peft_config"):
        del model.backbone.decoder.peft_config
    return len(wrapped)
