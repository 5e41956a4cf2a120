"""From facts to words: which questions are asked of a video, and which expressions refer to its objects."""

from __future__ import annotations

import numpy as np

from datasets.synthetic import phrases
from datasets.synthetic.facts import EventLog, Fact
from datasets.synthetic.scene import MotionVideo, WorldExpression, WorldQuestion
from datasets.synthetic.settings import WorldSettings, sampled_frame_indices

_MOST_PER_TYPE = 3
_OF_ALL = {"first_start", "last_start"}


def _pick(options, rng: np.random.Generator):
    return options[int(rng.integers(len(options)))]


def _say(phrase: str, fact: Fact, video: MotionVideo, rng: np.random.Generator, noun: str = "object") -> str:
    values = {"noun": noun}
    if fact.about is not None:
        values["x"] = f"the {video.name_of(fact.about)}"
    if fact.direction is not None:
        values["d"] = _pick(phrases.DIRECTION_WORDS[fact.direction], rng)
    return phrase.format(**values)


def _long_enough(fact: Fact, video: MotionVideo) -> bool:
    sampled = sampled_frame_indices(video.num_frames)
    inside = (sampled >= fact.window[0]) & (sampled <= fact.window[1])
    return int(inside.sum()) >= video.settings.min_window_frames


def _as_question(fact: Fact, video: MotionVideo, rng: np.random.Generator) -> WorldQuestion:
    q_type, wordings = {**phrases.PHRASES, **phrases.PAIR_PHRASES}[fact.key]
    answer = " and ".join(f"the {video.name_of(item)}" for item in fact.answer_ids)
    return WorldQuestion(
        _say(_pick(wordings, rng), fact, video, rng), q_type, fact.answer_ids, answer, fact.window, fact.key
    )


def _order(facts: list[Fact], settings: WorldSettings, rng: np.random.Generator) -> list[Fact]:
    """A weighted shuffle; facts of weight 0 are dropped."""
    weights = np.array([settings.question_weights.get(fact.key, 1.0) for fact in facts])
    keys = rng.exponential(size=len(facts)) / np.maximum(weights, 1e-9)
    return [facts[item] for item in np.argsort(keys) if weights[item] > 0]


def ask(video: MotionVideo, log: EventLog, rng: np.random.Generator, two_answers: bool) -> list[WorldQuestion]:
    """Choose questions, balanced over the types and, where possible, with different answers and windows.

    Args:
        video: its objects and settings; the questions are returned, not stored.
        log: the video's events.
        rng: dice.
        two_answers: also ask for two objects once, if the video allows.

    Returns:
        At most ``settings.max_questions``; fewer than ``settings.min_questions`` if the video yields no more.
    """
    by_type: dict[str, list[Fact]] = {"Causal": [], "Counterfactual": [], "Sequential": [], "Descriptive": []}
    for fact in log.facts():
        if _long_enough(fact, video):
            by_type[phrases.PHRASES[fact.key][0]].append(fact)
    queues = [_order(facts, video.settings, rng) for facts in by_type.values()]
    chosen: list[Fact] = []
    for _ in range(_MOST_PER_TYPE):
        for queue in queues:
            if not queue or len(chosen) >= video.settings.max_questions:
                continue
            used = [(fact.answer_ids, fact.window) for fact in chosen]
            fresh = [fact for fact in queue if fact.key not in {other.key for other in chosen}] or queue
            best = min(fresh, key=lambda fact: used.count((fact.answer_ids, fact.window)))
            queue.remove(best)
            chosen.append(best)
    asked = [_as_question(fact, video, rng) for fact in chosen]
    if two_answers:
        pairs = [fact for fact in log.pair_facts() if _long_enough(fact, video)]
        if pairs:
            asked.append(_as_question(_pick(pairs, rng), video, rng))
    return asked


def describe(video: MotionVideo, log: EventLog, rng: np.random.Generator) -> list[WorldExpression]:
    """Referring expressions: one or two plain ones per object, motion ones from the facts, some for several objects."""
    found = [expression for target in video.objects for expression in _plain(video, target.object_id, rng)]
    for fact in log.facts():
        if fact.key not in phrases.MOTION_PHRASES:
            continue
        answer = video.objects[fact.answer_ids[0] - 1]
        noun = _pick(("object", "object", answer.shape), rng)
        if fact.key in _OF_ALL:
            noun = "object"  # the first of all to move need not be the first circle that was meant
        text = _say(_pick(phrases.MOTION_PHRASES[fact.key], rng), fact, video, rng, noun)
        found.append(WorldExpression(text, fact.answer_ids, "motion"))
    return found + _several(video, log, rng)


def _plain(video: MotionVideo, object_id: int, rng: np.random.Generator) -> list[WorldExpression]:
    """The object by its looks: its name, and one more where colour, shape or size alone tell it apart."""
    target = video.objects[object_id - 1]
    texts = [_pick(phrases.PLAIN_PHRASES, rng).format(name=target.name)]
    others = [other for other in video.objects if other is not target]
    extra = []
    if all(other.colour != target.colour for other in others):
        extra.append(f"the {target.colour} one")
    if all(other.shape != target.shape for other in others):
        extra.append(f"the only {target.shape}")
    radii = video.radii
    rest = np.delete(radii, object_id - 1, axis=0)
    if radii[object_id - 1].min() > 1.15 * rest.max():
        extra.append(f"the big {target.name}")
    if radii[object_id - 1].max() < rest.min() / 1.15:
        extra.append(f"the small {target.name}")
    if extra:
        texts.append(_pick(extra, rng))
    return [WorldExpression(text, (object_id,), "plain") for text in texts]


def _several(video: MotionVideo, log: EventLog, rng: np.random.Generator) -> list[WorldExpression]:
    """Expressions for groups of two or more."""
    everyone = tuple(target.object_id for target in video.objects)
    resized = {event.object_id for event in log.of("grow", "shrink")}
    groups: list[tuple[str, tuple[int, ...], dict[str, str]]] = [
        ("movers", tuple(sorted(log.travels)), {}),
        ("stills", tuple(item for item in everyone if item not in log.travels and item not in resized), {}),
    ]
    for direction, words in phrases.DIRECTION_WORDS.items():
        movers = log.moving(direction)
        if movers:
            groups.append(("direction", tuple(sorted(movers)), {"d": _pick(words, rng)}))
    for shape in sorted({target.shape for target in video.objects}):
        same = tuple(target.object_id for target in video.objects if target.shape == shape)
        groups.append(("shape", same, {"nouns": shape + ("es" if shape.endswith("s") else "s")}))
    return [
        WorldExpression(_pick(phrases.MULTI_PHRASES[key], rng).format(**values), ids, "multi")
        for key, ids, values in groups
        if len(ids) >= 2
    ]
