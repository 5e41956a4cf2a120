"""Our model against what the original LISA and MoRA computed: ``lisa_golden``, every array, through the public API.

The tolerances are those stated beside the arrays. All videos and questions found in the fixture are used.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model import answering
from model.backbones.llava import vision_features
from model.checkpoints import load_any, rename_published
from model.losses import LossWeights, bce_per_mask, dice_per_mask
from model.mora import MoraModel
from utils.batch import MoraBatch, QuestionTensors, VideoTensors

FIXTURE = Path(__file__).resolve().parents[3] / "shared" / "data" / "lisa_golden"
TEMPLATES = {"tf": "llava_llama_2", "v1": "llava_v1"}


@dataclass
class Golden:
    """Arrays of the fixture, and its prompts."""

    folder: Path
    arrays: dict[str, np.ndarray]
    samples: list[dict]

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(self.arrays[name])

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def sample(self, family: str, video: str, question: int) -> dict:
        """The entry of prompts.json for one sample."""
        wanted = (TEMPLATES[family], video, question)
        return next(s for s in self.samples if (s["conv_type"], s["video"], s["q"]) == wanted)

    def size(self, video: str, kind: str) -> tuple[int, int]:
        """(h, w) "resize" or (H, W) "orig"."""
        return tuple(self[f"pre/{video}/{kind}_hw"].tolist())

    def ids(self, family: str, video: str, question: int) -> tuple[Tensor, Tensor]:
        """input_ids and labels."""
        sample = self.sample(family, video, question)
        return torch.tensor(sample["input_ids"]), torch.tensor(sample["labels"])

    def masks(self, video: str, question: int) -> Tensor:
        """Target of a question, uint8 [1, T, H, W]."""
        return (self[f"pre/{video}/gt_ids"] == question + 1).to(torch.uint8)[None]

    def batch(self, samples: list[tuple[str, str, list[int]]]) -> MoraBatch:
        """A batch of (family, video, questions)."""
        videos = []
        for family, video, questions in samples:
            frames = self[f"pre/{video}/clip_pixels"].shape[0]
            tensors = [
                QuestionTensors(*self.ids(family, video, q), self.masks(video, q), torch.arange(frames))
                for q in questions
            ]
            videos.append(
                VideoTensors(
                    video,
                    self[f"pre/{video}/clip_pixels"],
                    self[f"pre/{video}/sam_input"],
                    self.size(video, "resize"),
                    self.size(video, "orig"),
                    tensors,
                )
            )
        return MoraBatch(videos)


def found(family: str) -> list[tuple[str, str, int]]:
    """(family, video, question) of every sample of a family in the fixture; nothing where it is absent."""
    if not (FIXTURE / "golden.npz").is_file():
        return []
    with np.load(FIXTURE / "golden.npz") as file:
        keys = [name.split("/") for name in file.files]
    return sorted({(family, key[1], int(key[2][1:])) for key in keys if key[0] == family})


SAMPLES = found("tf") + found("v1")
VIDEOS = sorted({video for _, video, _ in SAMPLES})
pytestmark = pytest.mark.skipif(not SAMPLES, reason="reference data ../shared/data/lisa_golden is not here")


@pytest.fixture(scope="module")
def golden() -> Golden:
    with np.load(FIXTURE / "golden.npz") as file:
        arrays = {name: file[name] for name in file.files}
    samples = json.loads((FIXTURE / "prompts.json").read_text(encoding="utf-8"))["samples"]
    return Golden(FIXTURE, arrays, samples)


@pytest.fixture(scope="module")
def model(golden) -> MoraModel:
    loaded, report = load_any(golden.folder / "lisa_tiny", vision_pretrained=golden.folder / "sam_tiny.pth")
    assert not report.missing and not report.unexpected and not report.mismatched and not report.initialised
    return loaded


@pytest.fixture(scope="module")
def contexts(golden, model) -> dict:
    """Each video, encoded once for all tests."""
    return {
        video: answering.encode(
            model,
            golden[f"pre/{video}/clip_pixels"],
            golden[f"pre/{video}/sam_input"],
            golden.size(video, "resize"),
            golden.size(video, "orig"),
        )
        for video in VIDEOS
    }


def close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Compare absolutely, as the fixture states its tolerances."""
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("video", VIDEOS)
def test_encoders(golden, model, contexts, video):
    features = vision_features(model.vision_tower, golden[f"pre/{video}/clip_pixels"], model.config.vision_select_layer)
    close(features, golden[f"enc/{video}/clip_feat"], 5e-5)
    close(contexts[video].visual.tokens, golden[f"enc/{video}/mm_feat"], 5e-5)
    close(contexts[video].sam_embeddings.parts[0], golden[f"enc/{video}/sam_emb"], 5e-5)


def all_masks(sam, images: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor]:
    """Masks and scores of all four tokens, [N, 4, a, b] and [N, 4], so that every weight of the decoder is read."""
    dense = sam.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1).expand_as(images)
    inputs = (images, sam.dense_positions().expand_as(images), prompts[:, None, None], dense)
    parts = [sam.mask_decoder(*inputs, multimask_output=several) for several in (False, True)]
    return tuple(torch.cat([one, three], 2)[:, 0] for one, three in zip(*parts))


@torch.no_grad()
def test_constants_of_sam(golden, model):
    close(model.sam.dense_positions(), golden["sam/dense_pe"], 1e-5)
    close(model.sam.prompt_encoder.no_mask_embed.weight[0], golden["sam/dense_prompt"], 0)


@torch.no_grad()
@pytest.mark.parametrize(("family", "video", "question"), SAMPLES)
def test_states_prompts_and_masks(golden, model, contexts, family, video, question, cached):
    key = f"{family}/{video}/q{question}"
    context = contexts[video]
    (reading,) = answering.read(model, context, [golden.ids(family, video, question)[0]])
    assert reading.seg_states.shape[0] == 1
    close(reading.seg_states[0], golden[f"{key}/seg_hidden"], 1e-4)
    prompts = model.prompt_embeddings(reading.seg_states[0])
    close(prompts, golden[f"{key}/prompt_embed"], 1e-4)
    low_res = model.sam.decode(context.sam_embeddings, prompts)
    close(low_res, golden[f"{key}/low_res"], 5e-4)
    if f"{key}/logits_full" in golden:
        full = model.sam.to_frames(low_res, context.resized_size, context.original_size)
        close(full, golden[f"{key}/logits_full"], 5e-4)
    if f"{key}/low_res_all4" in golden:
        masks, iou = all_masks(model.sam, context.sam_embeddings.parts[0], prompts)
        close(masks, golden[f"{key}/low_res_all4"], 5e-4)
        close(iou, golden[f"{key}/iou_all4"], 2e-4)
    if f"{key}/answer_logits" in golden:
        supervised = int((golden.ids(family, video, question)[1] != -100).sum())
        close(reading.logits[:, -supervised:], golden[f"{key}/answer_logits"], 2e-4)
    full_key = f"full/{video}/q{question}/last_hidden"
    if family == "tf" and full_key in golden:
        close(reading.states, golden[full_key], 1e-4)


@torch.no_grad()
@pytest.mark.parametrize(("family", "video", "question"), found("tf"))
def test_answers(golden, model, contexts, family, video, question):
    """The evaluation path, from a prompt without its answer, gives the training path's masks."""
    sample = golden.sample(family, video, question)
    prompt = torch.tensor(sample["eval_input_ids"])
    answer_ids = golden.ids(family, video, question)[0][len(prompt) :]
    (answer,) = answering.answer(model, contexts[video], [prompt], answering.Request(forced=[answer_ids]))
    assert answer.has_seg.all()
    close(answer.masks, golden[f"{family}/{video}/q{question}/logits_full"], 5e-4)


@torch.no_grad()
@pytest.mark.parametrize(("family", "video", "question"), SAMPLES)
def test_losses(golden, model, family, video, question):
    key = f"{family}/{video}/q{question}"
    output = model(golden.batch([(family, video, [question])]), return_predictions=True)
    names = ("loss", "ce_loss", "mask_bce_loss", "mask_dice_loss", "mask_loss")
    close(torch.stack([output[name] for name in names]), golden[f"{key}/losses"], 1e-4)
    if f"{key}/bce_per_frame" in golden:
        logits = output["predictions"][0][0]["mask_logits"][0]
        targets = golden.masks(video, question)[0]
        close(bce_per_mask(logits, targets), golden[f"{key}/bce_per_frame"], 1e-4)
        close(dice_per_mask(logits, targets), golden[f"{key}/dice_per_frame"], 1e-4)


@torch.no_grad()
def test_losses_of_a_ragged_batch(golden, model):
    """Every question of every video at once: what the original cannot do, equal to its single losses averaged."""
    questions = {video: [q for _, v, q in found("tf") if v == video] for video in VIDEOS}
    output = model(golden.batch([("tf", video, questions[video]) for video in VIDEOS]), return_predictions=True)
    single, frames = [], []
    for index, video in enumerate(VIDEOS):
        for place, question in enumerate(questions[video]):
            logits = output["predictions"][index][place]["mask_logits"][0]
            close(logits, golden[f"tf/{video}/q{question}/logits_full"], 5e-4)
            single.append(golden[f"tf/{video}/q{question}/losses"])
            frames.append(logits.shape[0])
    # Every row supervises seven tokens and every frame one mask, so both means are weighted by frames.
    weights = torch.tensor(frames, dtype=torch.float32)[:, None]
    expected = (torch.stack(single) * weights).sum(0) / weights.sum()
    names = ("loss", "ce_loss", "mask_bce_loss", "mask_dice_loss", "mask_loss")
    close(torch.stack([output[name] for name in names]), expected, 1e-4)


def test_loss_weights_scale(golden, model):
    batch = golden.batch([found("tf")[0][:2] + ([0],)])
    with torch.no_grad():
        plain, scaled = model(batch), model(batch, LossWeights(ce=0.0, bce=4.0, dice=0.0))
    close(scaled["loss"], 2 * plain["mask_bce_loss"], 1e-4)


@pytest.fixture(scope="module")
def gradients(golden) -> dict[str, Tensor]:
    """Gradients of the first sample's loss, in training mode, by the original's names (None where there is none)."""
    trained, _ = load_any(golden.folder / "lisa_tiny")
    names = golden.arrays["grad/names"].tolist()
    places, ignored = rename_published({name: name for name in names})
    assert not ignored and places.keys() <= dict(trained.named_parameters()).keys()
    for name, parameter in trained.named_parameters():
        parameter.requires_grad_(name in places)
    trained.train()
    trained.set_gradient_checkpointing(True)
    trained(golden.batch([("tf", "video_a", [0])]))["loss"].backward()
    parameters = dict(trained.named_parameters())
    return {original: parameters[ours].grad for ours, original in places.items()}


def test_gradient_norms(golden, gradients):
    wrong = []
    for name, expected in zip(golden.arrays["grad/names"].tolist(), golden.arrays["grad/l2"].tolist()):
        gradient = gradients[name]
        norm = 0.0 if gradient is None else gradient.double().norm().item()
        if expected == 0 and norm != 0:
            wrong.append(f"{name}: {norm} instead of exactly 0")
        elif expected > 1e-4 and abs(norm - expected) > 1e-3 * expected:
            wrong.append(f"{name}: {norm} instead of {expected}")
    assert not wrong, "\n".join(wrong)
    assert sum(golden.arrays["grad/l2"] > 1e-4) > 50  # enough of them say something


@pytest.mark.parametrize(
    ("array", "name", "row"),
    [
        ("grad/text_hidden_fcs.0.2.weight", "model.text_hidden_fcs.0.2.weight", None),
        ("grad/seg_row_of_embed", "model.embed_tokens.weight", "seg"),
        ("grad/mask_tokens", "model.visual_model.mask_decoder.mask_tokens.weight", None),
    ],
)
def test_full_gradients(golden, model, gradients, array, name, row):
    gradient = gradients[name]
    if row == "seg":
        gradient = gradient[model.config.seg_token_id]
    expected = golden[array]
    close(gradient, expected, 1e-3 * expected.abs().max().item())
