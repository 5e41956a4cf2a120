"""What does not keep the rules of the house, each with its reason. The lists only shrink: an entry that is no longer
needed fails the test that reads it.
"""

from __future__ import annotations

LEAVES = (
    "datasets.corpora.images",
    "datasets.doctor",
    "datasets.synthetic",
    "evaluation.benchmarks.mevis",
)
"""Modules and packages that a registry opens by name when they are asked for. They are counted apart."""

LONG_LEAVES = {
    "datasets/synthetic/events.py": "one short function per kind of motion, and the table of them",
    "datasets/synthetic/questions.py": "what is true of a video and what is asked about it follow from one log",
}
"""Files of leaves with more than 200 lines of code."""

_READER = "the doctor examines a corpus with the functions that read it, and the reader is a leaf of its own"
_WRITERS = "only what writes corpora loads the writers, so the face that readers go through leaves them out"

PAST_THE_FACE = {
    "datasets/doctor/groundmore.py: datasets.corpora.groundmore": _READER,
    "datasets/doctor/listed.py: datasets.corpora.mevis": _READER,
    "datasets/doctor/listed.py: datasets.corpora.refer_youtube_vos": _READER,
    "datasets/synthetic/corpora.py: datasets.corpora.writers": _WRITERS,
    "datasets/synthetic/layouts.py: datasets.corpora.writers": _WRITERS,
}
"""Imports of a sub-folder's inside: "file: module" -> reason."""

_STATED = "a rule that the protocol states; it is read with all others by the dataclass's own field list"
_LIBRARY = "a name that a library looks for; the library reads it"

UNUSED = {
    **{
        f"evaluation/protocol.py: {name}": _STATED
        for name in (
            "absent_object",
            "both_empty",
            "boundary_match",
            "boundary_tolerance",
            "decoding",
            "failed_question",
            "mask_size",
            "missing_loc",
            "missing_mask",
            "missing_mask_file",
            "repeated_frames",
            "truth_ids",
            "truth_objects",
            "void_pixels",
        )
    },
    **{
        f"model/presets.py: {name}": "a size, asked for by its name"
        for name in ("qwen2_5_vl_7b", "qwen3_vl_2b", "qwen3_vl_4b", "qwen3_vl_8b")
    },
    "model/backbones/qwen3_vl.py: _deepstack_process": _LIBRARY,
    "model/fields.py: maxother": _LIBRARY,
    "model/fields.py: maxstring": _LIBRARY,
    "model/initialization.py: num_embeddings": _LIBRARY,
    "model/initialization.py: out_features": _LIBRARY,
    "model/mora.py: _gradient_checkpointing_func": _LIBRARY,
    "model/mora.py: base_model_prefix": _LIBRARY,
    "utils/pickles.py: find_class": _LIBRARY,
    "training/tiny_base/tasks.py: refer": "the rates of the four tasks are read by the names in KINDS",
    "utils/video.py: read_video": "for callers outside: docs/data.md names it for frames of any video file",
}
"""Definitions that no product file uses: "file: name" -> reason."""

CODE_LINES = 13_230
"""Lines of code that the root scripts may load, leaves apart. The aim is 8,000 with a second backbone; what is above it
keeps promises: damaged and hostile files, kills, shards, runs that meet in a folder, weights that say how they were
made."""
