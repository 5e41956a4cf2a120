"""SAM's own files: the names of their tensors, the sizes that their shapes tell, and filling the parts that a model
lacks. Sources: ``segment_anything`` (build_sam.py, modeling/), ``transformers`` (models/sam)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from transformers import SamConfig

from model.checkpoints.files import read_state_dict
from model.checkpoints.layout import count_layers
from model.checkpoints.report import LoadReport
from model.segmenters import sam_config
from utils.errors import CheckpointError

_RENAMES = (
    (r"^image_encoder\.", "vision_encoder."),
    (r"^prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix$", "shared_image_embedding.positional_embedding"),
    (r"\.patch_embed\.proj\.", ".patch_embed.projection."),
    (r"\.blocks\.", ".layers."),
    (r"(\.layers\.\d+)\.norm(\d)\.", r"\1.layer_norm\2."),
    (r"\.neck\.0\.", ".neck.conv1."),
    (r"\.neck\.1\.", ".neck.layer_norm1."),
    (r"\.neck\.2\.", ".neck.conv2."),
    (r"\.neck\.3\.", ".neck.layer_norm2."),
    (r"\.point_embeddings\.", ".point_embed."),
    (r"\.mask_downscaling\.0\.", ".mask_embed.conv1."),
    (r"\.mask_downscaling\.1\.", ".mask_embed.layer_norm1."),
    (r"\.mask_downscaling\.3\.", ".mask_embed.conv2."),
    (r"\.mask_downscaling\.4\.", ".mask_embed.layer_norm2."),
    (r"\.mask_downscaling\.6\.", ".mask_embed.conv3."),
    (r"\.norm_final_attn\.", ".layer_norm_final_attn."),
    (r"\.output_upscaling\.0\.", ".upscale_conv1."),
    (r"\.output_upscaling\.1\.", ".upscale_layer_norm."),
    (r"\.output_upscaling\.3\.", ".upscale_conv2."),
    (r"(_mlps\.\d|_prediction_head)\.layers\.0\.", r"\1.proj_in."),
    (r"(_mlps\.\d|_prediction_head)\.layers\.1\.", r"\1.layers.0."),
    (r"(_mlps\.\d|_prediction_head)\.layers\.2\.", r"\1.proj_out."),
)
"""From the original's names to those of ``transformers``, one after the other."""

_PARTS = {
    "vision_encoder": "image encoder",
    "prompt_encoder": "prompt encoder",
    "shared_image_embedding": "prompt encoder",
    "mask_decoder": "mask decoder",
}
"""First word of a tensor's name (ours) to the part of SAM, which is filled as a whole or not at all."""


def rename_sam(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a SAM checkpoint to the names of :class:`model.segmenters.sam.SamSegmenter`.

    Args:
        state: by the names of ``segment_anything`` or of ``transformers.SamModel``.

    Returns:
        The same values; one whose name neither layout has keeps it.
    """
    if any(name.startswith(("vision_encoder.", "shared_image_embedding.")) for name in state):
        renamed = dict(state)
        # ``SamModel`` may store its position matrix a second time, under this name.
        repeated = renamed.pop("prompt_encoder.shared_embedding.positional_embedding", None)
        return renamed if repeated is None else {"shared_image_embedding.positional_embedding": repeated, **renamed}
    renamed = {}
    for name, value in state.items():
        for pattern, replacement in _RENAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    return renamed


def read_sam(path: str | Path) -> dict[str, Tensor]:
    """Read a SAM checkpoint of the original or the transformers layout; see :func:`rename_sam`.

    Args:
        path: ``sam_vit_h_4b8939.pth`` or the like, or a folder of ``transformers.SamModel``.

    Raises:
        CheckpointError: unreadable, or nothing in it belongs to SAM.
    """
    tensors = rename_sam(read_state_dict(path))
    if not any(part_of(name) for name in tensors):
        raise CheckpointError(f"{path}: no tensor of SAM in it; expected sam_vit_h_4b8939.pth or a SamModel folder")
    return tensors


def part_of(name: str) -> str | None:
    """The part of SAM that a tensor belongs to; None for a stranger."""
    return _PARTS.get(name.partition(".")[0])


def fill_sam(tensors: dict[str, Tensor], vision_pretrained: str | Path | None, report: LoadReport) -> None:
    """Add those parts of SAM that ``tensors`` lacks altogether; a trained part is never overwritten.

    Args:
        tensors: named as in :class:`model.mora.MoraModel`; changed in place.
        vision_pretrained: where missing parts come from.
        report: gets a note per part.

    Raises:
        CheckpointError: a part is missing and there is no SAM checkpoint, or that has not got it either; or the file is
            no SAM, even if it is not needed: a wrong path should not wait to be noticed.
    """
    there = {part_of(name.removeprefix("sam.")) for name in tensors if name.startswith("sam.")}
    lacking = [part for part in dict.fromkeys(_PARTS.values()) if part not in there]
    if vision_pretrained is None:
        if lacking:
            raise CheckpointError(
                f"{report.source}: has no SAM {', '.join(lacking)}; give a SAM checkpoint (--vision_pretrained)"
            )
        return
    source = read_sam(vision_pretrained)
    if not lacking:
        _examine(vision_pretrained, source)
        report.notes.append(f"{vision_pretrained} NOT USED: the checkpoint brings all of SAM, trained")
        return
    for part in lacking:
        if part not in map(part_of, source):
            raise CheckpointError(f"{vision_pretrained}: has no {part} either, which {report.source} lacks")
        report.notes.append(f"SAM {part} from {vision_pretrained}")
    tensors.update({f"sam.{name}": tensor for name, tensor in source.items() if part_of(name) in lacking})
    # Strangers as well, so that they are named, as their file calls them.
    tensors.update({name: tensor for name, tensor in source.items() if part_of(name) is None})


def _examine(path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse a file that is no SAM. It is mapped, so little more than its list of tensors is read."""
    strangers = [name for name in tensors if not part_of(name)]
    try:
        if strangers:
            raise CheckpointError(f"{len(strangers)} of its tensors have no place there ({', '.join(strangers[:3])} …)")
        if any(name.startswith("vision_encoder.") for name in tensors):
            sam_config_of(tensors)
    except CheckpointError as error:
        raise CheckpointError(
            f"{path}: not a SAM that is known here: {error}; give sam_vit_h_4b8939.pth or a SamModel folder "
            "(--vision_pretrained), or leave it out: it is not needed here"
        ) from None


def sam_config_of(state: Mapping[str, Tensor]) -> SamConfig:
    """The configuration of a SAM checkpoint by its shapes, so that no size has to be guessed.

    The grid comes from ``pos_embed``; the width of a head from ``rel_pos_h``, whose length also tells windows from
    global attention (``2 * side - 1``). What no shape shows is the original's, such as the mask decoder's eight heads.

    Args:
        state: all tensors; :func:`rename_sam` gives them their names.

    Raises:
        CheckpointError: a tensor that is needed is absent.
    """

    def shape(name: str) -> tuple[int, ...]:
        if name not in state:
            raise CheckpointError(f"{name}: missing, so the model's size cannot be read from the checkpoint")
        return tuple(state[name].shape)

    embed_dim, _, patch_size, _ = shape("vision_encoder.patch_embed.projection.weight")
    grid = shape("vision_encoder.pos_embed")[1]
    depth = count_layers(state, r"vision_encoder\.layers\.(\d+)\.")
    tables = [shape(f"vision_encoder.layers.{layer}.attn.rel_pos_h") for layer in range(max(1, depth))]
    if not tables[0][1]:
        raise CheckpointError("vision_encoder.layers.0.attn.rel_pos_h: empty, so the width of a head cannot be read")
    sides = [(length + 1) // 2 for length, _ in tables]
    return sam_config(
        image_size=grid * patch_size,
        patch_size=patch_size,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=embed_dim // tables[0][1],
        window_size=next((side for side in sides if side != grid), 0),
        global_attn_indexes=[layer for layer, side in enumerate(sides) if side == grid],
        out_channels=shape("vision_encoder.neck.conv1.weight")[0],
        mlp_dim=shape("vision_encoder.layers.0.mlp.lin1.weight")[0],
        decoder_depth=count_layers(state, r"mask_decoder\.transformer\.layers\.(\d+)\."),
        decoder_mlp_dim=shape("mask_decoder.transformer.layers.0.mlp.lin1.weight")[0],
    )
