"""docs/evaluation.md names every choice, measure and row, and its example is what the code writes."""

from __future__ import annotations

import dataclasses
import json
import os

from evaluation.predict import predict_corpus
from evaluation.protocol import CHOICES, PRESETS, Protocol, make_protocol
from evaluation.records import open_run
from evaluation.score import score_corpus
from evaluation.summary import MEASURES, ROWS, summarise

BEGIN, END = "<!-- example begins -->\n```json\n", "```\n<!-- example ends -->"


def shortened(summary: dict) -> dict:
    """The example of the page: two rows, two splits, four measures, two fields of the protocol."""
    keep = {"all_empty": ["Overall"], "model": ["Overall", "Causal"]}
    rows = {}
    for name, splits in keep.items():
        table = {
            split: {"N": cells["N"]} | {key: rounded(cells[key]) for key in ("JF", "window_J", "temporal_iou")}
            for split, cells in summary["rows"][name]["table"].items()
            if split in splits
        }
        rows[name] = {**summary["rows"][name], "table": table}
    protocol = {key: summary["protocol"][key] for key in ("name", "num_frames", "frame_sampling", "loc_refine")}
    return {**summary, "protocol": protocol, "rows": rows, "measures": {"JF": summary["measures"]["JF"]}}


def rounded(cell: dict | None) -> dict | None:
    return cell and {key: round(value, 4) if isinstance(value, float) else value for key, value in cell.items()}


def test_the_page_names_every_choice_measure_and_row(project_root):
    page = (project_root / "docs" / "evaluation.md").read_text()
    for name in [field.name for field in dataclasses.fields(Protocol) if field.name != "name"]:
        assert f"`{name}`" in page, name
    for name in [*MEASURES, *ROWS, *PRESETS, *(value for values in CHOICES.values() for value in values)]:
        assert name in page, name
    for field in ("num_frames", "frame_sampling", "max_new_tokens", "loc_threshold"):
        assert f"| {getattr(Protocol(), field)} |" in page.replace("`", ""), field


def test_the_example_is_what_the_code_writes(project_root, corpus, dummy_predictor, tmp_path):
    def second_clip_only(video, query, index):
        return video.read_object_mask(query, index) if video.video_id.startswith("beta") else None

    protocol = make_protocol(num_frames=8)
    mark = open_run(tmp_path, protocol.prediction_settings())
    predict_corpus(corpus, dummy_predictor(corpus, protocol, second_clip_only), tmp_path, protocol, mark)
    scores = score_corpus(corpus, tmp_path, protocol, mark)
    run = {"fingerprint": mark, "settings": {}, "about": {}, "selection": {"limit": None, "video": None}}
    example = json.dumps(shortened(summarise(scores, protocol, run)), indent=2) + "\n"
    path = project_root / "docs" / "evaluation.md"
    page = path.read_text()
    if os.environ.get("UPDATE_DOCS"):
        start, stop = page.index(BEGIN) + len(BEGIN), page.index(END)
        path.write_text(page[:start] + example + page[stop:])
        page = path.read_text()
    assert BEGIN + example + END in page, "run this test with UPDATE_DOCS=1 and look at the difference"
