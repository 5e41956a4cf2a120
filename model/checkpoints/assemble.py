"""Build a model around tensors: no memory for weights that will be replaced, nothing left out silently."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from model.checkpoints.finite import note_non_finite, raise_non_finite, require_weights
from model.checkpoints.report import LoadReport
from model.config import MoraConfig
from model.fields import building
from model.mora import MoraModel
from utils.errors import CheckpointError, Problems

_HEAD = "language_model.lm_head.weight"


def empty_model(config: MoraConfig) -> MoraModel:
    """A model whose parameters are on the meta device; its constant buffers are real."""
    with building("the model"), init_empty_weights(include_buffers=False):
        return MoraModel(config)


def assemble(
    config: MoraConfig,
    tensors: dict[str, Tensor],
    report: LoadReport,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    seed: int = 0,
    allow_missing: Sequence[str] = (),
    allow_unexpected: Sequence[str] = (),
) -> MoraModel:
    """Build a model of ``config`` holding ``tensors``.

    Args:
        config: the model's shape.
        tensors: by the model's names; emptied as it goes, so that memory is not needed twice.
        report: filled in.
        device: where the model goes.
        dtype: of all floating-point weights; None keeps that of the word embeddings in ``tensors``.
        seed: for weights that are missing and allowed to be: these are newly initialised.
        allow_missing: ``fnmatch`` patterns of such names.
        allow_unexpected: patterns of tensors that may have no place.

    Returns:
        The model, in eval mode.

    Raises:
        CheckpointError: a tensor is missing, unexpected, of another shape or no floating-point numbers, or holds NaN or
            an infinity (perhaps only after the cast to ``dtype``), with every name.
    """
    embeddings = tensors.get("language_model.model.embed_tokens.weight")
    dtype = dtype or (torch.float32 if embeddings is None else embeddings.dtype)
    model = empty_model(config)
    tied = {_HEAD} if model.language_model.config.tie_word_embeddings else set()
    if (
        tied
        and _HEAD in tensors
        and embeddings is not None
        and not torch.equal(tensors[_HEAD].to(embeddings.dtype), embeddings)
    ):
        raise CheckpointError(
            f"{report.source}: {_HEAD} differs from the word embeddings, though config.json says that they are one "
            "(tie_word_embeddings); set it to false there, or use the config.json saved with these weights"
        )
    fitting = _fitting(model, tensors, report, tied)
    report.raise_if_bad(allow_missing, allow_unexpected)
    require_weights({name: tensors[name] for name in fitting}, report.source)
    problems = Problems()
    for name in fitting:
        stored = tensors.pop(name)
        # A copy even where nothing changes: the source may be a view of a file that is mapped, not read.
        cast = stored.to(device=device, dtype=dtype, copy=True)
        note_non_finite(name, stored, cast, problems)
        _place(model, name, cast)
    raise_non_finite(problems, report.source)
    tensors.clear()
    if tied:
        model.language_model.tie_weights()
    report.loaded += len(fitting)
    initialise_meta(model, report, dtype, seed)
    model.config.dtype = dtype
    return model.to(device).eval()


def _place(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Put a tensor where ``name`` says, as a parameter that is as trainable as the one it replaces, or as a buffer."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    if leaf in module._parameters:
        tensor = nn.Parameter(tensor, requires_grad=module._parameters[leaf].requires_grad)
    setattr(module, leaf, tensor)


def _fitting(model: MoraModel, tensors: dict[str, Tensor], report: LoadReport, optional: set[str]) -> list[str]:
    """Compare names and shapes; note in ``report`` what does not fit, return the names that do."""
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    fitting = []
    for name, tensor in tensors.items():
        shape = tuple(tensor.shape)
        if name not in wanted:
            report.unexpected[name] = shape
        elif shape != wanted[name]:
            report.mismatched[name] = (shape, wanted[name])
        else:
            fitting.append(name)
    for name, shape in wanted.items():
        if name not in tensors and name not in optional:
            report.missing[name] = shape
    return fitting


def initialise_meta(model: MoraModel, report: LoadReport, dtype: torch.dtype, seed: int) -> None:
    """Give every parameter that is still on the meta device fresh values, as a new model would have.

    Args:
        model: changed in place.
        report: gets the names of the modules.
        dtype: of the new parameters.
        seed: of their values; the global generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for path, module in model.named_modules():
            fresh = [name for name, value in module.named_parameters(recurse=False) if value.is_meta]
            if fresh:
                _initialise(model, module, fresh)
                report.initialised.append(path)
                for name in fresh:
                    module._parameters[name].data = module._parameters[name].data.to(dtype)


def _initialise(model: MoraModel, module: nn.Module, fresh: Sequence[str]) -> None:
    """Fill the ``fresh`` parameters of one module in float32; what it already holds stays."""
    for name in fresh:
        old = module._parameters[name]
        module._parameters[name] = nn.Parameter(torch.zeros(old.shape), requires_grad=old.requires_grad)
    kept = {name: value.detach().clone() for name, value in module.named_parameters(recurse=False) if name not in fresh}
    model._init_weights(module)
    with torch.no_grad():
        for name, value in kept.items():
            module._parameters[name].copy_(value)
