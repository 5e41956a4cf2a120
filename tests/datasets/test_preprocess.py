"""Preprocessing: equal to what the encoders were trained with."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.pixels import Preprocessor
from model.backbones.llava import CLIP_MEAN, CLIP_STD
from model.segmenters.sam import MEAN as SAM_MEAN
from model.segmenters.sam import STD as SAM_STD
from tests.datasets.conftest import corner, pixels_of
from utils.errors import ConfigError


def noise(height: int, width: int, count: int = 1) -> np.ndarray:
    """Smooth enough that resizing matters, rough enough that a wrong filter shows."""
    rng = np.random.default_rng([height, width])
    return rng.integers(0, 256, size=(count, height, width, 3), dtype=np.uint8)


def test_pixels_of_the_original(shared_data):
    folder = shared_data / "lisa_golden"
    golden = np.load(folder / "golden.npz")
    videos = sorted(path.name for path in (folder / "frames").iterdir() if path.is_dir())
    assert videos
    sam, clip = Preprocessor(corner(128)), Preprocessor(pixels_of(56))
    for video in videos:
        paths = sorted((folder / "frames" / video / "images").iterdir())
        frames = [np.array(Image.open(path).convert("RGB")) for path in paths]
        resized = sam.resize(frames).permute(0, 2, 3, 1).numpy()
        np.testing.assert_array_equal(resized, golden[f"pre/{video}/sam_resized_u8"])
        np.testing.assert_allclose(sam(frames), golden[f"pre/{video}/sam_input"], atol=1e-5, rtol=0)
        np.testing.assert_allclose(clip(frames), golden[f"pre/{video}/clip_pixels"], atol=1e-5, rtol=0)
        size = frames[0].shape[:2]
        assert sam.resized_size(*size) == tuple(golden[f"pre/{video}/resize_hw"])
        assert size == tuple(golden[f"pre/{video}/orig_hw"])


@pytest.mark.parametrize("size", [(48, 85), (85, 48), (56, 56), (97, 331), (57, 90), (30, 41), (200, 56)])
def test_clip_crop_equals_the_image_processor(size):
    module = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    processor = module.CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    frames = noise(*size, count=2)
    wanted = processor(images=[Image.fromarray(frame) for frame in frames], return_tensors="np").pixel_values
    np.testing.assert_allclose(Preprocessor(pixels_of(56))(frames), wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("size, resized", [((720, 1280), (36, 64)), ((1280, 720), (64, 36)), ((64, 64), (64, 64))])
def test_sam_square(size, resized):
    sam = Preprocessor(corner(64))
    frames = noise(*size)
    pixels = sam(frames)
    height, width = resized
    assert sam.resized_size(*size) == resized
    assert pixels.shape == (1, 3, 64, 64) and pixels.dtype == torch.float32
    assert (pixels[:, :, height:] == 0).all() and (pixels[:, :, :, width:] == 0).all()
    picture = pixels[0, :, :height, :width].permute(1, 2, 0) * torch.tensor(SAM_STD) + torch.tensor(SAM_MEAN)
    wanted = np.asarray(Image.fromarray(frames[0]).resize((width, height), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(picture, wanted, atol=1e-3)


def test_sam_rounds_half_up_and_keeps_a_pixel():
    assert Preprocessor(corner(100)).resized_size(200, 33) == (100, 17)
    assert Preprocessor(corner(100)).resized_size(33, 200) == (17, 100)
    assert Preprocessor(corner(64)).resized_size(1, 1000) == (1, 64)


def clip_picture(pixels: torch.Tensor) -> np.ndarray:
    """[3, c, c] -> 0..255 [c, c, 3]."""
    return ((pixels.permute(1, 2, 0) * torch.tensor(CLIP_STD) + torch.tensor(CLIP_MEAN)) * 255).numpy()


def test_clip_squash_and_pad_show_the_whole_frame():
    frame = np.full((40, 80, 3), 128, dtype=np.uint8)
    frame[:, :10] = 255  # the left edge, which a centre crop loses
    crop, pad, squash = (
        clip_picture(Preprocessor(pixels_of(32, mode))([frame])[0]) for mode in ("crop", "pad", "squash")
    )
    assert crop.max() < 200
    assert (squash[:, :3] > 200).all() and squash.shape == (32, 32, 3)
    assert (pad[8:24, :3] > 200).all()
    np.testing.assert_allclose(pad[:8], np.broadcast_to(np.array(CLIP_MEAN) * 255, (8, 32, 3)), atol=1e-3)
    np.testing.assert_allclose(pad[24:], np.broadcast_to(np.array(CLIP_MEAN) * 255, (8, 32, 3)), atol=1e-3)


@pytest.mark.parametrize("mode", ["crop", "pad", "squash"])
@pytest.mark.parametrize("size", [(64, 64), (31, 64), (200, 7), (3, 5)])
def test_clip_shape_for_any_size(mode, size):
    pixels = Preprocessor(pixels_of(32, mode))(noise(*size, count=2))
    assert pixels.shape == (2, 3, 32, 32) and pixels.dtype == torch.float32 and pixels.isfinite().all()


def test_list_and_array_give_the_same_and_frames_stay_untouched():
    frames = noise(20, 30, count=3)
    before = frames.copy()
    for preprocess in (Preprocessor(corner(32)), Preprocessor(pixels_of(32))):
        assert preprocess(frames).equal(preprocess(list(frames)))
    np.testing.assert_array_equal(frames, before)


PREPROCESSORS = [
    Preprocessor(corner(64)),
    *(Preprocessor(pixels_of(32, mode)) for mode in ("crop", "pad", "squash")),
]


@pytest.mark.parametrize("preprocess", PREPROCESSORS, ids=["sam", "crop", "pad", "squash"])
@pytest.mark.parametrize("size", [(72, 128), (128, 72), (64, 64), (32, 32), (200, 7), (3, 5)])
def test_the_stages_are_the_whole(preprocess, size):
    frames = noise(*size, count=2)
    resized = preprocess.resize(frames)
    assert resized.dtype == torch.uint8 and resized.shape[:2] == (2, 3)
    assert preprocess.resize(list(frames)).equal(resized)
    assert preprocess.normalise(resized).equal(preprocess(frames))


@pytest.mark.parametrize("preprocess", PREPROCESSORS, ids=["sam", "crop", "pad", "squash"])
def test_padding_is_zero_and_the_rest_is_the_formula(preprocess):
    """The values of every pixel from the definition, one number at a time in float64."""
    resized = preprocess.resize(noise(20, 50))
    pixels, (height, width) = preprocess.normalise(resized)[0], resized.shape[2:]
    side = preprocess.image_size
    is_clip = preprocess.mode != "corner"
    top, left = ((side - height) // 2, (side - width) // 2) if is_clip else (0, 0)
    mean, std, white = (CLIP_MEAN, CLIP_STD, 255) if is_clip else (SAM_MEAN, SAM_STD, 1)
    wanted = np.zeros((3, side, side))
    values = resized[0].double().numpy() / white
    for channel in range(3):
        inner = (values[channel] - mean[channel]) / std[channel]
        wanted[channel, top : top + height, left : left + width] = inner
    np.testing.assert_allclose(pixels, wanted, atol=1e-6, rtol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("preprocess", PREPROCESSORS, ids=["sam", "crop", "pad", "squash"])
def test_normalising_on_a_gpu(preprocess):
    frames = noise(72, 128, count=2)
    pixels = preprocess.normalise(preprocess.resize(frames).cuda())
    assert pixels.is_cuda and pixels.cpu().equal(preprocess(frames))


def test_wrong_input_is_refused():
    with pytest.raises(ConfigError, match="crop, pad, squash"):
        Preprocessor(pixels_of(32, "stretch"))
    for preprocess in (Preprocessor(corner(32)), Preprocessor(pixels_of(32))):
        with pytest.raises(ValueError, match="no frame"):
            preprocess([])
        with pytest.raises(ValueError, match="uint8"):
            preprocess(noise(8, 8).astype(np.float32))
        with pytest.raises(ValueError, match="one size"):
            preprocess([noise(8, 8)[0], noise(8, 9)[0]])
