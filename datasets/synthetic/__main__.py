"""Write corpora of the procedural motion world, in the layouts of GroundMoRe, Refer-YouTube-VOS and MeViS.

python -m datasets.synthetic --out ./dataset --seed 1 --num_videos 300
python -m datasets.synthetic --out ./dataset --seed 2 --num_videos 120 --split test --corpora groundmore
python -m datasets.synthetic --out ./bench --seed 3 --num_videos 4 --height 720 --width 1280 --corpora groundmore
"""

from __future__ import annotations

import argparse
import os
import sys

from datasets.synthetic.corpora import LAYOUTS, CorpusPlan, write_corpora
from datasets.synthetic.settings import WorldSettings
from utils.errors import ConfigError, MoraError, write_any_text
from utils.paths import user_path

_EPILOG = """\
what is made
  Textured objects over a noisy background start, stop, turn, chase, push, block each other, hide behind a screen and
  come back, grow, shrink and zigzag. The simulation's log gives exact masks, exact action windows, and Causal,
  Sequential, Counterfactual and Descriptive questions whose answer takes the motion, not the looks.

where it goes, under --out
  GroundMoRe/trainval_v2.json or groundmore_test.json (and referring_test.json), GroundMoRe/groundmore_videos/
  refytvos/train/{JPEGImages,Annotations}, refytvos/meta_expressions/train/meta_expressions.json
  MeViSv2/{train,valid_u}/{JPEGImages,meta_expressions.json,mask_dict.json}
  synthetic.json says what was made from which settings

The same seed and settings give the same bytes, whatever --workers is. After an interruption, run the same command
again: it continues. Training and test videos never coincide, whatever their seeds.
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line of this program."""
    parser = argparse.ArgumentParser(
        prog="python -m datasets.synthetic",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=user_path, required=True, help="folder to write to; made if missing")
    parser.add_argument("--seed", type=int, default=0, help="of the corpus (default 0)")
    parser.add_argument("--num_videos", type=int, required=True, help="videos in each corpus, unless set below")
    for name in LAYOUTS:
        parser.add_argument(f"--num_{name}", type=int, help=f"videos in the {name} corpus (default: --num_videos)")
    parser.add_argument("--split", choices=("train", "test"), default="train", help="default train")
    parser.add_argument(
        "--corpora",
        help=f"comma list of {', '.join(LAYOUTS)} (default: all for train, groundmore for test)",
    )
    parser.add_argument("--height", type=int, default=64, help="of the frames in pixels (default 64)")
    parser.add_argument("--width", type=int, default=64, help="of the frames in pixels (default 64)")
    parser.add_argument(
        "--num_frames",
        type=int,
        default=48,
        help="frames per clip at 6 per second (default 48: 8 seconds); actions start and stop on whole seconds",
    )
    parser.add_argument(
        "--length_jitter",
        type=int,
        help="clips are longer or shorter by up to this many seconds (default 1; 0 for clips under 5 seconds)",
    )
    parser.add_argument(
        "--level",
        choices=("easy", "hard"),
        default="easy",
        help="easy: 4-5 objects of different colours; hard: 5-7 objects in 3 colours and 3 shapes that pass over each "
        "other (default easy)",
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all CPU cores)")
    parser.add_argument(
        "--overwrite",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="replace what this program wrote into --out from other settings (default: refuse); files of other origin "
        "are kept in any case",
    )
    return parser


def plans_from(arguments: argparse.Namespace) -> list[CorpusPlan]:
    """Which corpora the command line asks for.

    Raises:
        ConfigError: an unknown corpus, or values the world cannot be made with.
    """
    everything = list(LAYOUTS) if arguments.split == "train" else ["groundmore"]
    names = [name.strip() for name in arguments.corpora.split(",")] if arguments.corpora else everything
    unknown = [name for name in names if name not in LAYOUTS]
    if unknown:
        raise ConfigError(f"--corpora {', '.join(unknown)}: unknown; choose from {', '.join(LAYOUTS)}")
    jitter = arguments.length_jitter
    if jitter is None:
        jitter = 1 if arguments.num_frames >= 30 else 0
    make = WorldSettings.hard if arguments.level == "hard" else WorldSettings
    settings = make(
        height=arguments.height,
        width=arguments.width,
        num_frames=arguments.num_frames,
        length_jitter=jitter,
    )
    plans = []
    for name in dict.fromkeys(names):
        count = getattr(arguments, f"num_{name}")
        count = arguments.num_videos if count is None else count
        plans.append(CorpusPlan(name, arguments.split, arguments.seed, count, settings))
    return plans


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    write_any_text()
    arguments = build_parser().parse_args(argv)
    try:
        write_corpora(arguments.out, plans_from(arguments), arguments.workers, arguments.overwrite)
    except MoraError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(
            f"error: {arguments.out}: cannot write ({error}); free some space or choose another --out, then run the "
            "same command again to continue",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
