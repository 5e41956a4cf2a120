"""Write corpora of the procedural motion world, in the layouts of GroundMoRe, Refer-YouTube-VOS and MeViS.

python -m datasets.synthetic --out ./dataset --seed 1 --num_videos 300
python -m datasets.synthetic --out ./dataset --seed 2 --num_videos 120 --split test --corpora groundmore
python -m datasets.synthetic --out ./bench --seed 3 --num_videos 4 --height 720 --width 1280 --corpora groundmore
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, make_dataclass

from datasets.synthetic.corpora import LAYOUTS, CorpusPlan, write_corpora
from datasets.synthetic.settings import WorldSettings
from utils.errors import ConfigError, MoraError, write_any_text
from utils.flags import flag, parse_small

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


@dataclass
class WorldFlags:
    """Where corpora go, and of what world and how many they are."""

    out: str = flag(path=True, written=True, help="folder to write to; made if missing")
    seed: int = flag(0, help="of the corpus (default 0)")
    num_videos: int = flag(help="videos in each corpus, unless set below")
    split: str = flag("train", choices=("train", "test"), help="default train")
    corpora: str | None = flag(
        None, help=f"comma list of {', '.join(LAYOUTS)} (default: all for train, groundmore for test)"
    )
    height: int = flag(64, help="of the frames in pixels (default 64)")
    width: int = flag(64, help="of the frames in pixels (default 64)")
    num_frames: int = flag(48, help="frames per clip at 6 per second (default 48: 8 seconds); actions start and stop "
                           "on whole seconds")  # fmt: skip
    length_jitter: int | None = flag(None, help="clips are longer or shorter by up to this many seconds (default 1; 0 "
                                     "for clips under 5 seconds)")  # fmt: skip
    level: str = flag("easy", choices=("easy", "hard"), help="easy: 4-5 objects of different colours; hard: 5-7 "
                      "objects in 3 colours and 3 shapes that pass over each other (default easy)")  # fmt: skip
    workers: int = flag(os.cpu_count() or 1, help="processes (default: all CPU cores)")
    overwrite: bool = flag(False, help="replace what this program wrote into --out from other settings (default: "
                           "refuse); files of other origin are kept in any case")  # fmt: skip


_COUNTS = [
    (f"num_{name}", int | None, flag(None, help=f"videos in the {name} corpus (default: --num_videos)"))
    for name in LAYOUTS
]
SyntheticFlags = make_dataclass("SyntheticFlags", _COUNTS, bases=(WorldFlags,))
"""Every flag of this program: a new layout brings its own."""


def plans_from(flags: WorldFlags) -> list[CorpusPlan]:
    """Which corpora the command line asks for.

    Raises:
        ConfigError: an unknown corpus, or values the world cannot be made with.
    """
    everything = list(LAYOUTS) if flags.split == "train" else ["groundmore"]
    names = [name.strip() for name in flags.corpora.split(",")] if flags.corpora else everything
    unknown = [name for name in names if name not in LAYOUTS]
    if unknown:
        raise ConfigError(f"--corpora {', '.join(unknown)}: unknown; choose from {', '.join(LAYOUTS)}")
    jitter = flags.length_jitter
    if jitter is None:
        jitter = 1 if flags.num_frames >= 30 else 0
    make = WorldSettings.hard if flags.level == "hard" else WorldSettings
    settings = make(height=flags.height, width=flags.width, num_frames=flags.num_frames, length_jitter=jitter)
    plans = []
    for name in dict.fromkeys(names):
        count = getattr(flags, f"num_{name}")
        count = flags.num_videos if count is None else count
        plans.append(CorpusPlan(name, flags.split, flags.seed, count, settings))
    return plans


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    write_any_text()
    try:
        flags = parse_small(SyntheticFlags, __doc__, argv, prog="python -m datasets.synthetic", epilog=_EPILOG)
        write_corpora(flags.out, plans_from(flags), flags.workers, flags.overwrite)
    except MoraError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(
            f"error: {flags.out}: cannot write ({error}); free some space or choose another --out, then run the "
            "same command again to continue",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
