"""``groundmore_2025`` has the arithmetic of the evaluator published in 2025, written down here a second time, plainly.

For every question: frames ``linspace(0, n - 1, 20, dtype=int)``; ground truth ``png == obj_id`` on frames with
``start <= index <= end`` (seconds times 6, not clipped; a missing file is empty), else empty; J and F of DAVIS per
frame; nanmean over the frames; J&F their mean. Then means over questions, overall and per type.
"""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from PIL import Image

from datasets.corpora.groundmore import GroundMoRe
from evaluation.protocol import make_protocol
from evaluation.records import Record, frames_digest, open_run, write_record
from evaluation.run import evaluate
from evaluation.scoring.score import score_corpus
from evaluation.scoring.summary import summarise
from evaluation.settings import parse_arguments
from utils.errors import DataError
from utils.masks import encode_rle

TYPES = ("Causal", "Sequential", "Counterfactual", "Descriptive")
CLIPS = {
    # id: (frames, height, width)
    "one_0000_0001": (1, 24, 32),
    "three_0000_0001": (3, 24, 32),
    "seven_0105_0106": (7, 20, 44),
    "nineteen_0010_0013": (19, 30, 40),
    "twenty_0010_0013": (20, 30, 40),
    "minute_0059_0103": (21, 24, 32),
    "long_0110_0120": (58, 100, 130),
}
WINDOWS = {
    # id: (start, end) in seconds after the start of the clip
    "whole": (0, 60),
    "first second": (0, 1),
    "second second": (1, 2),
    "begins before": (-2, 1),
    "beyond the end": (40, 50),
    "before the clip": (-5, -2),
    "empty": (1, 1),
    "reversed": (3, 1),
}
POSSIBLE = ("whole", "first second", "begins before")
"""Windows that leave something of every clip."""


def clock(seconds):
    return f"{seconds // 60:02d}:{seconds % 60:02d}"


def clip_start(video_id):
    return int(video_id[-9:-7]) * 60 + int(video_id[-7:-5])


def seeded(*key):
    return np.random.default_rng(list("|".join(map(str, key)).encode()))


def blob(rng, height, width):
    """A mask that is sometimes empty, sometimes full, else a box or two."""
    kind = rng.integers(8)
    mask = np.full((height, width), kind == 7)
    for _ in range(int(kind > 0) + int(kind > 4)):
        top, left = rng.integers(height - 3), rng.integers(width - 3)
        mask[top : top + rng.integers(2, height), left : left + rng.integers(2, width)] = True
    return mask


def predicted(video_id, query_id, index):
    _, height, width = CLIPS[video_id]
    return blob(seeded("prediction", video_id, query_id, index), height, width)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    root = tmp_path_factory.mktemp("corpus")
    videos = {}
    for video_id, (frames, height, width) in CLIPS.items():
        for name in ("images", "masks"):
            (root / "clips" / video_id / name).mkdir(parents=True)
        for index in range(frames):
            Image.new("RGB", (width, height)).save(root / "clips" / video_id / "images" / f"frame_{index:06d}.jpg")
            if index % 5 == 3:
                continue  # no mask file
            ids = np.zeros((height, width), dtype=np.uint8)
            for object_id in (1, 2):
                ids[blob(seeded("truth", video_id, index, object_id), height, width)] = object_id
            if index == 0:  # every object is somewhere in its clip
                ids[:4, :4], ids[:4, -4:] = 1, 2
            image = Image.fromarray(ids)
            image.putpalette([value for level in range(256) for value in (level, 255 - level, 7)])
            image.save(root / "clips" / video_id / "masks" / f"frame_{index:06d}.png")
        start = clip_start(video_id)
        videos[video_id] = {
            "questions": {
                name: {
                    "question": f"What about {name}?",
                    "answer": "it",
                    "obj_id": str(1 + number % 2),
                    "q_type": TYPES[number % 4],
                    "action_start": clock(start + first),
                    "action_end": clock(start + last),
                }
                for number, (name, (first, last)) in enumerate(WINDOWS.items())
                if start + min(first, last) >= 0  # no clock shows a time before the source video
            }
        }
    (root / "test.json").write_text(json.dumps({"videos": videos}))
    return root / "test.json", root / "clips"


def boundary(mask):
    """The boundary map of DAVIS by its definition, pixel by pixel differences with the lower right neighbours."""
    right, below, both = np.zeros((3, *mask.shape), dtype=bool)
    right[:, :-1], below[:-1], both[:-1, :-1] = mask[:, 1:], mask[1:], mask[1:, 1:]
    edge = (mask ^ right) | (mask ^ below) | (mask ^ both)
    edge[-1], edge[:, -1] = mask[-1] ^ right[-1], mask[:, -1] ^ below[:, -1]
    edge[-1, -1] = False
    return edge


def share_near(points, others, radius):
    """Share of ``points`` with one of ``others`` within the radius, by all pairs of distances."""
    points, others = np.argwhere(points), np.argwhere(others)
    distances = ((points[:, None] - others[None]) ** 2).sum(-1)
    return float((distances.min(1) <= radius * radius).mean())


def frame_scores(truth, mask):
    union = (truth | mask).sum()
    j = (truth & mask).sum() / union if union else 1.0
    edges = boundary(truth), boundary(mask)
    counts = [edge.sum() for edge in edges]
    if min(counts) == 0:
        return j, float(max(counts) == 0)
    radius = math.ceil(0.008 * math.sqrt(mask.shape[0] ** 2 + mask.shape[1] ** 2))
    precision, recall = share_near(edges[1], edges[0], radius), share_near(edges[0], edges[1], radius)
    return j, 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def original(meta_file, root):
    """{(video, question): (type, J&F, J, F)} as the published evaluator intends it."""
    results = {}
    for video_id, video in json.loads(meta_file.read_text())["videos"].items():
        names = sorted(path.name for path in (root / video_id / "images").iterdir())
        frames = np.linspace(0, len(names) - 1, 20, dtype=int)
        for query_id, entry in video["questions"].items():
            times = []
            for key in ("action_start", "action_end"):
                minutes, seconds = entry[key].split(":")
                times.append((int(minutes) * 60 + int(seconds) - clip_start(video_id)) * 6)
            start, end = times[0], times[1] - 1
            pairs = []
            for index in frames:
                mask = predicted(video_id, query_id, index)
                truth = np.zeros_like(mask)
                path = root / video_id / "masks" / f"frame_{index:06d}.png"
                if start <= index <= end and path.exists():
                    truth = np.array(Image.open(path).convert("P")) == int(entry["obj_id"])
                pairs.append(frame_scores(truth, mask))
            j, f = np.nanmean(pairs, axis=0)
            results[video_id, query_id] = entry["q_type"], (j + f) / 2, j, f
    return results


def record(corpus, folder, protocol, mark):
    """Write the predictions as this project's records."""
    for video in corpus:
        listed = protocol.sample(len(video.frame_paths))
        distinct = np.unique(listed).tolist()
        for query in video.questions:
            masks = [predicted(video.video_id, query.query_id, index) for index in distinct]
            prediction = Record(
                video_id=video.video_id,
                query_id=query.query_id,
                question=query.text,
                status="ok",
                fingerprint=mark,
                num_clip_frames=len(video.frame_paths),
                listed_frames=listed.tolist(),
                frames=frames_digest(video, distinct),
                frame_indices=distinct,
                size=list(masks[0].shape),
                masks=[encode_rle(mask) for mask in masks],
            )
            write_record(folder, prediction)


def ours(corpus, folder, protocol):
    """Scores of the same predictions by this project."""
    record(corpus, folder, protocol, "mark")
    return score_corpus(list(corpus), folder, protocol, "mark")


def test_every_number_is_that_of_the_original(paths, tmp_path):
    protocol = make_protocol("groundmore_2025")
    expected = original(*paths)
    scores = ours(GroundMoRe(*paths, empty_windows="keep"), tmp_path, protocol)
    assert [(score["video_id"], score["query_id"]) for score in scores] == list(expected) and len(scores) == 52
    for score in scores:
        assert score["status"] == "ok", score["reason"]
        _, *numbers = expected[score["video_id"], score["query_id"]]
        row = score["rows"]["model"]
        assert [row["JF"], row["J"], row["F"]] == pytest.approx(numbers, rel=0, abs=1e-12)
    table = summarise(scores, protocol, {})["rows"]["model"]["table"]
    for split in ("Overall", *TYPES):
        part = [numbers for q_type, *numbers in expected.values() if split in ("Overall", q_type)]
        j, f = (math.fsum(column) / len(part) for column in list(zip(*part))[1:])
        means = [table[split][name]["mean"] for name in ("J", "F", "JF")]
        assert means == pytest.approx([j, f, (j + f) / 2], rel=0, abs=1e-12)
        assert table[split]["N"] == len(part)


def test_the_program_gives_the_same_and_says_what_it_did(paths, tmp_path, capsys):
    protocol = make_protocol("groundmore_2025")
    mark = open_run(tmp_path, {"protocol": protocol.prediction_settings()})
    record(GroundMoRe(*paths, empty_windows="keep"), tmp_path, protocol, mark)
    flags = ["--score_only", "--protocol", "groundmore_2025", "--pictures", "0", "--workers", "0"]
    places = ["--meta_file", str(paths[0]), "--video_root", str(paths[1]), "--output_dir", str(tmp_path)]
    assert evaluate(parse_arguments(flags + places)) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    expected = [numbers[1] for numbers in original(*paths).values()]
    mean = summary["rows"]["model"]["table"]["Overall"]["JF"]["mean"]
    assert mean == pytest.approx(math.fsum(expected) / len(expected), rel=0, abs=1e-12)
    assert summary["protocol"] == protocol.as_dict()
    printed, written = capsys.readouterr().out, (tmp_path / "result.txt").read_text()
    for line in protocol.describe():
        assert line in printed and f"# {line}\n" in written


def test_the_corpus_has_the_hard_cases(paths):
    corpus = GroundMoRe(*paths, empty_windows="keep")
    protocol = make_protocol("groundmore_2025")
    assert sum(len(video.frame_paths) < 20 for video in corpus) == 4
    impossible = [q.raw_window for video in corpus for q in video.questions if q.window == (0, -1)]
    assert len(impossible) > 12 and any(last < 0 for _, last in impossible) and any(a > b for a, b in impossible)
    kinds = [predicted("long_0110_0120", "whole", i) for i in protocol.sample(58)]
    assert any(not mask.any() for mask in kinds) and any(mask.all() for mask in kinds)


def test_groundmore_differs_in_the_rounding_of_frames():
    for total in range(1, 121):
        for count in (1, 5, 20):
            exact = np.linspace(0, total - 1, count)
            new = make_protocol(num_frames=count).sample(total)
            old = make_protocol("groundmore_2025", num_frames=count).sample(total)
            assert (old == np.trunc(exact)).all() and (abs(new - exact) <= 0.5).all()
            assert set((new - old).tolist()) <= {0, 1}


def test_groundmore_differs_in_impossible_windows_which_it_refuses_and_in_nothing_else(paths, tmp_path):
    with pytest.raises(DataError) as caught:
        GroundMoRe(*paths)
    kept = GroundMoRe(*paths, empty_windows="keep")
    for video in kept:
        for query in video.questions:
            named = f"video {video.video_id}, question {query.query_id}:" in str(caught.value)
            assert named == (query.window == (0, -1)) and not (named and query.query_id in POSSIBLE)
    meta = json.loads(paths[0].read_text())
    for video in meta["videos"].values():
        video["questions"] = {name: entry for name, entry in video["questions"].items() if name in POSSIBLE}
    (tmp_path / "possible.json").write_text(json.dumps(meta))
    corpus = GroundMoRe(tmp_path / "possible.json", paths[1])
    old = ours(corpus, tmp_path / "old", make_protocol("groundmore_2025"))
    new = ours(corpus, tmp_path / "new", make_protocol("groundmore", frame_sampling="linspace_truncated"))
    assert old == new
    rounded = ours(corpus, tmp_path / "rounded", make_protocol("groundmore"))
    assert [score["rows"] for score in rounded if score["video_id"].startswith("twenty")] == [
        score["rows"] for score in old if score["video_id"].startswith("twenty")
    ]
    assert rounded != old
