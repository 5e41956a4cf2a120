"""What to evaluate: some videos, some of their questions, and this process's share of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from datasets.sample import VideoRecord
from utils.errors import ConfigError


@dataclass(frozen=True)
class Selected:
    """A video of which some questions are wanted.

    Attributes:
        video: with all its questions.
        questions: ids of those wanted, in their order.
    """

    video: VideoRecord
    questions: tuple[str, ...]

    @property
    def scored(self) -> VideoRecord:
        """The video with the wanted questions only."""
        questions = tuple(query for query in self.video.questions if query.query_id in self.questions)
        return replace(self.video, questions=questions)


def select(
    corpus: Sequence[VideoRecord],
    videos: Iterable[str] | None = None,
    questions: Iterable[str] | None = None,
    limit: int | None = None,
) -> list[Selected]:
    """The videos and questions to evaluate, in the corpus's order.

    Args:
        corpus: of GroundMoRe records.
        videos: video ids to keep; None or nothing keeps all.
        questions: question ids to keep, in every video that has them; None or nothing keeps all.
        limit: keep at most this many videos, the first ones of those left; None keeps all.

    Raises:
        ConfigError: a name that the corpus, or the videos named, do not have, or a limit below 1.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"--limit {limit}: must be at least 1 video")
    known = {video.video_id for video in corpus}
    names, ids = list(dict.fromkeys(videos or ())), list(dict.fromkeys(questions or ()))
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"--video {', '.join(unknown)}: not among the {len(known)} videos of the annotation file")
    kept = [video for video in corpus if not names or video.video_id in names]
    found = {query.query_id for video in kept for query in video.questions}
    if unknown := [name for name in ids if name not in found]:
        where = "the videos named" if names else "any video of the annotation file"
        raise ConfigError(f"--question {', '.join(unknown)}: not in {where}")
    selected = [
        Selected(video, tuple(query.query_id for query in video.questions if not ids or query.query_id in ids))
        for video in kept
    ]
    return [each for each in selected if each.questions][:limit]
