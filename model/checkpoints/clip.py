"""CLIP's vision tower: a folder of its own beside LLaVA's weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from transformers import CLIPVisionConfig

from model.checkpoints.files import SUFFIXES, read_config, read_state_dict
from model.checkpoints.report import LoadReport, shapes_of
from model.fields import CLIP, building, note_problems, shown
from utils.errors import CheckpointError, ConfigError, Problems


def clip_config(folder: Path) -> CLIPVisionConfig:
    """The vision tower's configuration from a ``CLIPModel`` or ``CLIPVisionModel`` folder.

    Raises:
        CheckpointError: no ``config.json``, or of another kind of model.
        ConfigError: with every field whose value cannot be used.
    """
    config, path = read_config(folder), folder / "config.json"
    kind = config.get("model_type")
    if kind == "clip":
        config = {} if config.get("vision_config") is None else config["vision_config"]
    elif kind != "clip_vision_model":
        raise CheckpointError(f"{path}: model_type is {shown(kind)}, expected a CLIP vision tower")
    problems = Problems()
    note_problems(config, CLIP, problems, "vision_config" if kind == "clip" else "")
    problems.raise_if_any(ConfigError, f"{path}: use the config.json saved with this vision tower")
    known = CLIPVisionConfig().to_dict().keys() - {"model_type", "architectures", "transformers_version", "dtype"}
    with building(str(path)):
        return CLIPVisionConfig(**{name: value for name, value in config.items() if name in known})


def rename_clip(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Pick the vision tower out of a ``CLIPModel`` or ``CLIPVisionModel`` checkpoint of any transformers version.

    Returns:
        (tower, ignored): the tower's values under the names of ``CLIPVisionModel``; text tower, projections and
        ``position_ids``, which LLaVA does not use, under their own.
    """
    tower: dict[str, Tensor] = {}
    ignored: dict[str, Tensor] = {}
    for name, value in state.items():
        unused = name.startswith(("text_model.", "text_projection.", "visual_projection.")) or name == "logit_scale"
        if unused or name.endswith("embeddings.position_ids"):
            ignored[name] = value
        else:
            tower[name.removeprefix("vision_model.")] = value
    return tower, ignored


def fill_tower(tensors: dict[str, Tensor], folder: Path, report: LoadReport, asked_for: bool = True) -> None:
    """Add the vision tower of ``folder`` unless ``tensors`` brings one; changed in place. A folder that nobody asked
    for and that is not needed may hold its ``config.json`` alone.

    Raises:
        CheckpointError: the folder's weights cannot be read, or (even if they are not needed) are no vision tower's.
    """
    brought = any(name.startswith("vision_tower.") for name in tensors)
    if brought:
        clip_config(folder)
        report.notes.append(f"{folder} NOT USED: the checkpoint brings its vision tower")
        if not asked_for and not any(file.suffix in SUFFIXES for file in folder.iterdir()):
            return
    tower, ignored = rename_clip(read_state_dict(folder))
    if not any(name.endswith("embeddings.patch_embedding.weight") for name in tower):
        raise CheckpointError(
            f"{folder}: no CLIP vision tower in its weights; give a folder of CLIPModel or CLIPVisionModel "
            "(--vision-tower)" + (", or leave it out: it is not needed here" if brought else "")
        )
    if not brought:
        tensors.update({f"vision_tower.{name}": tensor for name, tensor in tower.items()})
        report.ignored.update(shapes_of(ignored))
        report.notes.append(f"vision tower from {folder}")
