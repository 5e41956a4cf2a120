"""Cases in which two scripts compare other pixels: variants of F, masks read, resized or cut differently."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

from evaluation.disagreements.world import HEIGHT, WIDTH, case, disc, jf, moving_disc, shifted
from evaluation.metrics import boundary_radius, contour_accuracy, score_clip
from utils.masks import palette, read_id_mask, union, write_id_mask


def f_of(match: Callable[[np.ndarray, int], np.ndarray], truth: np.ndarray, predicted: np.ndarray) -> float:
    """F of one frame, with the neighbourhood ``match(boundary, radius)`` of a boundary instead of the exact disk."""
    edges = [_boundary(truth), _boundary(predicted)]
    near = [match(edge, boundary_radius(*truth.shape)) for edge in edges]
    precision, recall = (edges[1] & near[0]).sum() / edges[1].sum(), (edges[0] & near[1]).sum() / edges[0].sum()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def _boundary(mask: np.ndarray) -> np.ndarray:
    """bool: pixels that differ from their right, lower or lower-right neighbour; for masks that do not touch the
    image's last row and column."""
    edge = np.zeros_like(mask)
    centre = mask[:-1, :-1]
    edge[:-1, :-1] = (centre ^ mask[:-1, 1:]) | (centre ^ mask[1:, :-1]) | (centre ^ mask[1:, 1:])
    return edge


def _dilated(boundary: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    return cv2.dilate(boundary.astype(np.uint8), kernel).astype(bool)


def flock(rows: int, columns: int, width: int = 854) -> tuple[np.ndarray, np.ndarray]:
    """A frame of 480 rows with one large and many small objects, and the same moved by some pixels."""
    truth = disc(240, 250, 90, 480, width)
    for index in range(40):
        truth |= disc(60 + 90 * (index // 8), 420 + 50 * (index % 8), 2, 480, width)
    return truth, shifted(truth, rows, columns)


@case("measures distances with a 5 x 5 chamfer mask", "matches within the exact disk", 2, "boundary_match", measure="F")
def distance_transform() -> tuple[float, float]:
    """One large object and many small ones at 480p, predicted 7 pixels too low and 4 too far to the right.

    That is a distance of 8.06; boundaries match within 8. `cv2.distanceTransform` with its 5 x 5 mask adds up steps of
    1, 1.4 and 2.1969 and calls the distance 7.99, so everything matches. The definition is dx² + dy² ≤ r².
    """
    truth, predicted = flock(7, 4)

    def match(edge: np.ndarray, radius: int) -> np.ndarray:
        return cv2.distanceTransform((~edge).astype(np.uint8), cv2.DIST_L2, 5) <= radius

    return f_of(match, truth, predicted), float(contour_accuracy(truth, predicted)[0])


@case("dilates with OpenCV's ellipse", "matches within the exact disk", 2, "boundary_match", measure="F")
def ellipse_kernel() -> tuple[float, float]:
    """The same objects, predicted 8 pixels too low and 4 too far to the right.

    `cv2.MORPH_ELLIPSE` of side 2r + 1 is not the disk of radius r: at r = 8 it has 213 pixels and the disk 197.
    """
    truth, predicted = flock(8, 4)

    def match(edge: np.ndarray, radius: int) -> np.ndarray:
        return _dilated(edge, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1)))

    return f_of(match, truth, predicted), float(contour_accuracy(truth, predicted)[0])


@case("dilates with a square", "matches within the exact disk", 2, "boundary_match", measure="F")
def square_kernel() -> tuple[float, float]:
    """A square of side 2r + 1 reaches 1.41 r along its diagonals; the objects are 7 down and 7 to the right."""
    truth, predicted = flock(7, 7)

    def match(edge: np.ndarray, radius: int) -> np.ndarray:
        return _dilated(edge, np.ones((2 * radius + 1, 2 * radius + 1), dtype=np.uint8))

    return f_of(match, truth, predicted), float(contour_accuracy(truth, predicted)[0])


@case("leaves a band around the outline out (void)", "counts every pixel", 2, "void_pixels")
def void_band() -> tuple[float, float]:
    """A disc predicted two pixels off; the pixels within two of its outline are void for one script and count for the
    other.

    Void pixels are where annotators were not sure, and a corpus says where they are. GroundMoRe has none. A script that
    makes its own, or reads a border drawn with id 255 as void, forgives exactly what F is there to see.
    """
    truth = disc(24, 32, 12)
    void = disc(24, 32, 14) & ~disc(24, 32, 10)
    predicted = shifted(truth, 0, 2)
    left_out = score_clip(truth, predicted, void)
    return float((left_out[0][0] + left_out[1][0]) / 2), jf(truth[None], predicted[None])


@case("compares at half size", "compares at the original size", 2, "mask_size")
def evaluated_size() -> tuple[float, float]:
    """Masks of 480 x 640 pixels, predicted 7 down and 3 to the right, as they are and after shrinking both by half.

    The tolerance of F is rounded up to whole pixels: 7 at the original size (from 6.4), but 4 at half size (from 3.2),
    which is 8 pixels of the original.
    """
    truth, predicted = flock(7, 3, 640)
    halves = [mask[::2, ::2] for mask in (truth, predicted)]
    return jf(halves[0][None], halves[1][None]), jf(truth[None], predicted[None])


@case("converts an RGB mask to mode P", "reads stored ids, refuses colours", 2, "truth_ids")
def rgb_palette() -> tuple[float, float]:
    """Perfect masks of object 2 of three, whose ground truth was saved in the palette's colours as an RGB picture.

    Converted to mode P the colours are looked up in another palette: objects 1, 2, 3 become 13, 28, 25 and, by
    dithering, some neighbours. `== 2` finds nothing, and the truth is silently empty. Here a mask in a mode that does
    not hold ids is an error that names the file; the second number is that of the same ids stored as a palette PNG.
    """
    ids = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    for number, column in enumerate((12, 32, 52), start=1):
        ids[disc(24, column, 8)] = number
    converted = np.array(Image.fromarray(palette()[ids]).convert("P"))
    with tempfile.TemporaryDirectory() as folder:
        write_id_mask(Path(folder) / "mask.png", ids)
        stored = read_id_mask(Path(folder) / "mask.png")
    return jf((converted == 2)[None], (ids == 2)[None]), jf((stored == 2)[None], (ids == 2)[None])


@case("takes every pixel above 0", "takes the pixels of the question's objects", 2, "truth_ids")
def foreground() -> tuple[float, float]:
    """Perfect masks of object 1 of two, against a ground truth read as `png > 0`: both objects are the target."""
    one, other = moving_disc(row=14, radius=7), moving_disc(row=34, radius=9)
    ids = np.where(other, 2, 0) + np.where(one & ~other, 1, 0)
    return jf(ids > 0, one), jf(ids == 1, one)


@case("takes the first id", "unites all ids", 2, "truth_objects")
def several_ids() -> tuple[float, float]:
    """A question about two objects, "1, 2", with both of them found."""
    one, other = moving_disc(row=14, radius=7), moving_disc(row=34, radius=9)
    return jf(one, one | other), jf(union([one, other], one.shape), one | other)


def _logits(height: int, width: int, centre: tuple[float, float], radius: float) -> torch.Tensor:
    """float32 [1, 1, height, width]: a smooth bump, positive inside the radius."""
    rows, columns = torch.arange(height)[:, None].float(), torch.arange(width)[None].float()
    distance = ((rows - centre[0]) ** 2 + (columns - centre[1]) ** 2).sqrt()
    return (radius - distance)[None, None]


@case("thresholds, then enlarges (nearest)", "enlarges logits, then thresholds", 2, "mask_resize")
def mask_resize() -> tuple[float, float]:
    """A decoder's logits on a grid four times coarser than the frame; the object is a disc, and they are right.

    A mask that is made on the coarse grid and enlarged has stairs four pixels high. Enlarged logits have their zero
    where the object ends.
    """
    truth = disc(95.5, 127.5, 40, 192, 256)
    logits = _logits(48, 64, (23.5, 31.5), 10.0)
    nearest = interpolate((logits > 0).float(), (192, 256), mode="nearest")[0, 0].numpy() > 0
    smooth = interpolate(logits, (192, 256), mode="bilinear", align_corners=False)[0, 0].numpy() > 0
    return jf(truth[None], nearest[None]), jf(truth[None], smooth[None])


@case("forgets to cut the padding off", "cuts it off, then resizes", 2, "mask_resize")
def padding() -> tuple[float, float]:
    """A frame of 16:9 was put into the upper part of a square for the encoder, as in training.

    The decoder's logits are those of the square. Resized to the frame with the padding still on, every mask is
    squeezed upwards. The weights are the same; inference has another geometry than training had.
    """
    truth = disc(67.5, 127.5, 40, 144, 256)
    square = _logits(64, 64, (16.5, 31.5), 10.0)
    whole = interpolate(square, (144, 256), mode="bilinear", align_corners=False)
    cut = interpolate(square[:, :, :36], (144, 256), mode="bilinear", align_corners=False)
    return jf(truth[None], whole[0, 0].numpy()[None] > 0), jf(truth[None], cut[0, 0].numpy()[None] > 0)


CASES = (
    distance_transform,
    ellipse_kernel,
    square_kernel,
    void_band,
    evaluated_size,
    mask_resize,
    padding,
    rgb_palette,
    foreground,
    several_ids,
)
"""In the order of the page."""
