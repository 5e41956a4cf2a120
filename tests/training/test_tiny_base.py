"""The base of the demo: it sees, names and segments; it knows nothing of motion."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch

from datasets.conversation import Shown, encode_prompt, groundmore_question
from datasets.pixels import Preprocessor
from datasets.synthetic import Renderer, WorldSettings, make_video
from datasets.synthetic.settings import sampled_frame_indices
from datasets.tokenization import load_tokenizer
from model import presets
from model.answering import Request, answer, encode
from model.mora import MoraModel
from training.tiny_base.base import NUM_FRAMES, BaseRecipe, Phase, figures, make_tiny_base, patch_features
from training.tiny_base.tasks import StillTasks, TaskMix, dense_targets, place

PRESETS = {"tiny_base": presets.tiny, "tiny_qwen_base": presets.tiny_qwen}


@pytest.fixture(scope="module", params=PRESETS)
def base_folder(request, project_root):
    return project_root / "assets" / request.param


@pytest.fixture(scope="module")
def base(base_folder):
    return MoraModel.from_pretrained(base_folder, dtype=torch.float32).eval(), load_tokenizer(base_folder)


def tasks_of(model, tokenizer, frames=NUM_FRAMES, mix=None):
    config = model.config
    return StillTasks(
        WorldSettings(),
        tokenizer,
        config.template,
        frames,
        mix or TaskMix(),
        model.sam.pixel_rule,
        config.pixel_rule,
        config.frame_marks,
    )


def test_folder_is_small_and_says_how_it_was_made(base_folder):
    assert sum(path.stat().st_size for path in base_folder.iterdir()) < 10e6
    card = json.loads((base_folder / "card.json").read_text())
    assert card["made_by"] == "python -m scripts.make_tiny_base"
    assert card["minutes"] > 0 and card["figures"]["referring_iou"] > 0.65


def test_it_has_the_preset_s_architecture(base, base_folder):
    model, tokenizer = base
    fresh = presets.build(PRESETS[base_folder.name](vocab_size=len(tokenizer), loc_mode="none"))
    assert {n: p.shape for n, p in fresh.state_dict().items()} == {n: p.shape for n, p in model.state_dict().items()}


def test_it_segments_what_is_named(base):
    model, tokenizer = base
    assert figures(model, tasks_of(model, tokenizer), seed=4242, videos=8)["referring_iou"] > 0.65


def test_it_has_no_loc_and_no_seed_of_the_demo(base, base_folder, project_root):
    model, _ = base
    assert model.config.loc_mode == "none" and not hasattr(model, "loc_head")
    seed = json.loads((base_folder / "card.json").read_text())["recipe"]["seed"]
    demo = {int(value) for value in re.findall(r"--seed (\d+)", (project_root / "scripts/demo.sh").read_text())}
    assert demo and not any(abs(seed - value) < 1000 for value in demo)


def test_it_knows_no_motion(base):
    """Asked about motion it names an object no better than a guess among those in sight."""
    model, tokenizer = base
    sam, clip = Preprocessor(model.sam.pixel_rule), Preprocessor(model.config.pixel_rule)
    right, chance = [], []
    for index in range(40):
        video = make_video(31337, index, WorldSettings(), "test")
        indices = sampled_frame_indices(video.num_frames)
        frames, _ = Renderer(video).render(indices)
        shown = Shown(indices / WorldSettings().fps, model.config.frame_marks)
        size = frames.shape[1:3]
        context = encode(model, clip(frames), sam(frames), sam.resized_size(*size), size)
        prompts = [
            encode_prompt(groundmore_question(q.text), model.config.template, tokenizer, shown) for q in video.questions
        ]
        answers = answer(model, context, prompts, Request(max_new_tokens=10, eos_token_id=tokenizer.eos_id))
        for question, said in zip(video.questions, answers):
            words = tokenizer.decode(said.token_ids[0])
            named = [thing.object_id for thing in video.objects if thing.name in words]
            right.append(len(named) == 1 and named[0] in question.answer_ids)
            chance.append(len(question.answer_ids) / len(video.objects))
    assert len(right) > 200
    assert np.mean(right) < np.mean(chance) + 0.05


def test_places_count_rows_and_columns_from_one():
    ids = np.zeros((64, 64), dtype=np.uint8)
    ids[0:8, 56:64] = 3
    assert place(ids, 3) == (1, 8)
    assert place(ids, 2) is None


def test_questions_of_still_videos_are_true(base):
    """Where and what agree with the pictures, and the masks are the object's."""
    _, tokenizer = base
    tasks = tasks_of(*base, frames=3)
    world, id_maps = tasks.batch(5, 0, 1)[1][0]
    rng = np.random.default_rng(0)
    for _ in range(20):
        question = tasks.question("what", world, id_maps, rng)
        if question is None:
            continue
        words = tokenizer.decode(question.input_ids[question.input_ids >= 0].tolist())
        row, column, frame = (int(x) for x in re.search(r"at (\d), (\d) in frame (\d)", words).groups())
        (thing,) = [item for item in world.objects if item.name in words]
        assert place(id_maps[frame - 1], thing.object_id) == (row, column)
        question = tasks.question("refer", world, id_maps, rng)
        words = tokenizer.decode(question.input_ids[question.input_ids >= 0].tolist())
        (thing,) = [item for item in world.objects if item.name in words]
        expected = id_maps[question.mask_frames.numpy()] == thing.object_id
        assert np.array_equal(question.masks[0].numpy().astype(bool), expected)


def test_still_frames_say_nothing_about_each_other(base):
    """The same objects, placed anew: their steps between frames are as long as between frames far apart."""
    tasks = tasks_of(*base)
    near, far = [], []
    for index in range(30):
        world, id_maps = tasks.batch(6, index, 1)[1][0]
        for thing in world.objects:
            spots = [place(id_map, thing.object_id) for id_map in id_maps]
            for first, second in ((0, 1), (3, 4), (0, 7), (1, 6)):
                if spots[first] and spots[second]:
                    step = np.hypot(*np.subtract(spots[first], spots[second]))
                    (near if second - first == 1 else far).append(step)
    assert abs(np.mean(near) - np.mean(far)) < 0.4 and np.mean(near) > 2


def test_dense_targets_name_the_covering_object(base):
    tasks = tasks_of(*base, frames=2)
    worlds = tasks.batch(7, 0, 2)[1]
    targets = dense_targets(worlds, 8)
    assert targets.shape == (4, 64, 2)
    world, id_maps = worlds[0]
    ids, counts = np.unique(id_maps[0, 8:16, 16:24], return_counts=True)
    covered = {int(i): c / 64 for i, c in zip(ids, counts) if i and c / 64 >= 1 / 3}
    assert bool(targets[0, 8 * 1 + 2, 0] > 0) == bool(covered)


def test_patches_are_read_row_after_row(base):
    """A picture whose patches differ in brightness alone: their features come in that order."""
    model, _ = base
    if model.config.backbone == "llava":
        return
    tower, order = model.backbone.part("language_model.model.visual"), patch_features(model)[1]
    rows = torch.arange(64.0).reshape(8, 8) / 64
    pixels = rows.repeat_interleave(8, 0).repeat_interleave(8, 1).expand(2, 3, -1, -1)
    seen = []
    hook = tower.patch_embed.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model.backbone.encode([pixels])
    hook.remove()
    assert torch.equal(order(seen[0].mean(-1, keepdim=True)), rows.reshape(1, 64, 1).expand(2, -1, -1))


@pytest.mark.parametrize(("backbone", "words"), [("llava", "tiny_tokenizer"), ("qwen3_vl", "tiny_qwen_tokenizer")])
def test_making_it_twice_gives_the_same_weights(tmp_path, project_root, backbone, words):
    mix = TaskMix(refer=1, where=1, what=1, list=1, mask_frames=1)
    recipe = BaseRecipe(sam=Phase(1, 2, 2), language=(Phase(1, 2, 2, mix), Phase(2, 1, 1, mix)), warmup=1, workers=0)
    for name in ("a", "b"):
        make_tiny_base(tmp_path / name, project_root / "assets" / words, recipe, 1, backbone)
    first, second = (MoraModel.from_pretrained(tmp_path / name).state_dict() for name in ("a", "b"))
    assert all(torch.equal(first[name], second[name]) for name in first)
