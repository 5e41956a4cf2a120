"""docs/evaluation.md lists every choice, measure and row, and its example is what the code writes."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re

from evaluation.benchmark import find_benchmark
from evaluation.comparison import TREATMENTS
from evaluation.engine.predict import predict_corpus
from evaluation.protocol import CHOICES, PRESETS, Protocol, make_protocol
from evaluation.records import open_run
from evaluation.report.failures import NAMES
from evaluation.scoring.score import score_corpus
from evaluation.scoring.summary import summarise
from evaluation.settings import build_parser

MEASURES = {measure.key: measure.meaning for measure in find_benchmark().measures}
ROWS = find_benchmark().rows
TOKENS = {token.key: token.meaning for token in find_benchmark().kind.tokens}

BEGIN, END = "<!-- example begins -->\n```json\n", "```\n<!-- example ends -->"


def shortened(summary: dict) -> dict:
    """The example of the page: a few rows, splits, measures and fields of the protocol."""
    rows = {
        name: {**summary["rows"][name], "table": cells_of(summary["rows"][name]["table"], splits, ("JF", "window_J"))}
        for name, splits in {"model": ("Overall", "Causal"), "all_empty": ("Overall",)}.items()
    }
    margin = summary["differences"]["all_empty"]
    return {
        **summary,
        "protocol": {key: summary["protocol"][key] for key in ("name", "num_frames", "frame_sampling", "loc_refine")},
        "measures": {"JF": summary["measures"]["JF"]},
        "rows": rows,
        "differences": {"all_empty": {**margin, "table": cells_of(margin["table"], ("Overall",), ("JF",))}},
        "tokens": {
            "measures": {"seg": summary["tokens"]["measures"]["seg"]},
            "table": cells_of(summary["tokens"]["table"], ("Overall",), ("seg", "mask_frames")),
        },
    }


def cells_of(table: dict, splits: tuple[str, ...], keys: tuple[str, ...]) -> dict:
    """Some lines and columns of a table."""
    return {split: {"N": table[split]["N"]} | {key: rounded(table[split][key]) for key in keys} for split in splits}


def rounded(cell: dict | None) -> dict | None:
    return cell and {key: round(value, 4) if isinstance(value, float) else value for key, value in cell.items()}


def refreshed(root, begin: str, content: str, end: str) -> str:
    """The page; with UPDATE_DOCS=1 after writing the content between two marks."""
    path = root / "docs" / "evaluation.md"
    page = path.read_text()
    if os.environ.get("UPDATE_DOCS"):
        start, stop = page.index(begin) + len(begin), page.index(end)
        path.write_text(page[:start] + content + page[stop:])
        page = path.read_text()
    return page


def table_of_choices(root) -> list[tuple[str, str, str, list[str]]]:
    """(field, how it is set if not by a flag of its name, default, other values) of every line of the page's table."""
    page = (root / "docs" / "evaluation.md").read_text()
    lines = page[page.index("| Field | Default |") :].splitlines()[2:]
    rows = []
    for line in itertools.takewhile(lambda line: line.startswith("|"), lines):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert len(cells) == 4 and len(cells[3]) > 15, line
        field, _, how = cells[0].partition(" ")
        rows.append((field.strip("`"), how.strip("()"), cells[1], [] if cells[2] == "–" else cells[2].split(", ")))
    return rows


def as_written(value) -> str:
    """A default as the page writes it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return value if isinstance(value, str) else f"{value:g}"


def test_the_table_lists_the_fields_in_order_with_their_defaults_and_values(project_root):
    rows = table_of_choices(project_root)
    fields = [field for field in dataclasses.fields(Protocol) if field.name != "name"]
    assert [name for name, *_ in rows] == [field.name for field in fields]
    for (name, _, default, others), field in zip(rows, fields):
        value = field.default
        assert default == as_written(value), name
        if name in CHOICES:
            assert [value, *others] == list(CHOICES[name]), name
        elif isinstance(value, bool):
            assert others == ["on"], name
        else:
            assert others in (["any number"], ["0 to 1"]), name


def test_every_setting_has_the_flag_that_the_table_gives_and_every_statement_has_none(project_root):
    flags = {flag for action in build_parser()._actions for flag in action.option_strings}
    for name, how, _, others in table_of_choices(project_root):
        if how in ("by `--protocol`", "from Python"):
            assert f"--{name}" not in flags and others, name
            continue
        flag = how.strip("`") or f"--{name}"
        assert (flag in flags) == bool(others), flag


def test_the_page_names_every_measure_row_and_preset(project_root):
    page = (project_root / "docs" / "evaluation.md").read_text()
    for name in [*MEASURES, *ROWS, *PRESETS, *TOKENS]:
        assert f"`{name}`" in page or f"--protocol {name}" in page, name


def test_the_page_names_the_fields_in_which_compared_runs_may_differ(project_root):
    page = (project_root / "docs" / "evaluation.md").read_text()
    (listed,) = re.findall(r"that\s+belong to the method \(([^)]*)\)", page)
    assert {name.strip(" `\n") for name in listed.split(",")} == set(TREATMENTS) - {"name"}


def test_the_example_is_what_the_code_writes(project_root, corpus, dummy_predictor, tmp_path):
    def second_clip_only(video, query, index):
        return video.read_object_mask(query, index) if video.video_id.startswith("beta") else None

    protocol = make_protocol(num_frames=8)
    mark = open_run(tmp_path, protocol.prediction_settings())
    predict_corpus(corpus, dummy_predictor(corpus, protocol, second_clip_only), tmp_path, protocol, mark)
    scores = score_corpus(corpus, tmp_path, protocol, mark)
    run = {
        "fingerprint": mark,
        "settings": {},
        "about": {},
        "selection": {"limit": None, "video": None, "question": None},
    }
    example = json.dumps(shortened(summarise(scores, protocol, run)), indent=2) + "\n"
    page = refreshed(project_root, BEGIN, example, END)
    assert BEGIN + example + END in page, "run this test with UPDATE_DOCS=1 and look at the difference"


def test_the_rules_that_name_failures_are_those_of_the_code(project_root):
    begin, end = "<!-- failures begin -->\n", "<!-- failures end -->"
    rules = "".join(f"| {name} | {rule} |\n" for name, rule in NAMES.items())
    table = f"| Name | Rule |\n|---|---|\n{rules}"
    page = refreshed(project_root, begin, table, end)
    assert begin + table + end in page, "run this test with UPDATE_DOCS=1 and look at the difference"
