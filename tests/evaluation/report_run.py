"""A scored evaluation whose questions fail in several ways, and its report page: a fixture for the page's tests."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest

from datasets.corpora.groundmore import GroundMoRe
from evaluation.protocol import Protocol
from evaluation.records import Record, frames_digest, open_run, read_run, write_record
from evaluation.report import write_report_page, write_results
from evaluation.scoring.score import score_corpus
from evaluation.scoring.summary import summarise
from utils.masks import encode_rle

HOSTILE = """<script>window.hacked = 1</script></script><img src=x onerror="window.hacked=2">'"&amp; ${title}"""
ALPHA, BETA = "alpha_0000_0004", "beta_0110_0114"
PROTOCOL = Protocol(num_frames=6, loc_refine=True)
NAMES = {
    (ALPHA, "0"): "good", (ALPHA, "1"): "wrong object", (ALPHA, "late"): "wrong time",
    (BETA, "a"): "no token", (BETA, "b"): "failed",
}  # fmt: skip


def write_records(videos, output, mark):
    """One record per question, each with the failure that NAMES gives it."""
    for video in videos:
        listed = PROTOCOL.sample(len(video.frame_paths))
        indices = np.unique(listed)
        for query in video.questions:
            name = NAMES[video.video_id, query.query_id]
            about = dict(
                video_id=video.video_id, query_id=query.query_id, question=query.text, fingerprint=mark,
                num_clip_frames=len(video.frame_paths), listed_frames=listed.tolist(),
                frames=frames_digest(video, indices),
            )  # fmt: skip
            if name == "failed":
                write_record(output, Record(status="failed", reason=f"DataError: {HOSTILE}", **about))
                continue
            other = SimpleNamespace(object_ids=(1,))
            masks = [video.read_object_mask(other if name == "wrong object" else query, int(i)) for i in indices]
            inside = query.in_window(indices)
            probabilities = np.where(~inside if name == "wrong time" else inside, 0.9, 0.125)
            write_record(
                output,
                Record(
                    status="ok", frame_indices=indices.tolist(), size=list(masks[0].shape),
                    masks=[None if name == "no token" else encode_rle(mask) for mask in masks],
                    loc_probs=None if name == "no token" else probabilities.tolist(),
                    answers=[f"It is {HOSTILE} [SEG]."], **about,
                ),
            )  # fmt: skip


@pytest.fixture(scope="module", name="run")
def evaluated_run(corpus_paths, tmp_path_factory):
    """A scored evaluation of five questions, one of them with a hostile text, and its page."""
    meta_file, video_root = corpus_paths
    meta = json.loads(meta_file.read_text())
    questions = meta["videos"][ALPHA]["questions"]
    questions["late"] = {**questions["0"], "question": "Which one is late?", "q_type": "Counterfactual"}
    questions["0"] |= {"question": HOSTILE, "answer": HOSTILE}
    output = tmp_path_factory.mktemp("run")
    own_meta = output / "meta.json"
    own_meta.write_text(json.dumps(meta))
    corpus = GroundMoRe(own_meta, video_root)
    videos = [corpus[index] for index in range(len(corpus))]
    mark = open_run(output, {"weights": "w"}, about={"version": f"models/{HOSTILE}"})
    write_records(videos, output, mark)
    scores = score_corpus(videos, output, PROTOCOL, mark)
    summary = summarise(scores, PROTOCOL, {**read_run(output), "selection": {"limit": None}})
    write_results(output, output / "result.txt", scores, summary, PROTOCOL)
    page = write_report_page(videos, output, scores, summary, PROTOCOL)
    return SimpleNamespace(
        output=output, videos=videos, scores=scores, summary=summary, page=page, meta=own_meta, root=video_root
    )


def data_of(page):
    text = page.read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S).group(1))
