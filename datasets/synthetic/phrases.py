"""The wording of questions and expressions: fixed lists, several phrasings per template.

``{x}`` is an object's name with "the"; ``{d}`` a direction word.
"""

from __future__ import annotations

PHRASES: dict[str, tuple[str, tuple[str, ...]]] = {
    # Descriptive: what one object does
    "moves": ("Descriptive", ("What moves {d}?", "Which object travels {d}?", "What is going {d}?")),
    "grows": ("Descriptive", ("What gets bigger?", "What grows?", "Which object becomes larger?")),
    "shrinks": ("Descriptive", ("What gets smaller?", "What shrinks?", "Which object becomes smaller?")),
    "zigzags": (
        "Descriptive",
        ("What goes back and forth?", "What keeps reversing?", "Which object moves to and fro?"),
    ),
    "turns": ("Descriptive", ("What changes its direction?", "What takes a turn?", "Which object turns a corner?")),
    "hides": (
        "Descriptive",
        ("What disappears and comes back?", "What hides behind the screen?", "Which object passes behind the screen?"),
    ),
    "is_chased": ("Descriptive", ("What is being chased?", "What is followed by another object?", "What is chased?")),
    "chases": ("Descriptive", ("What chases another object?", "What is following another object?", "What is chasing?")),
    # Sequential: the order of things
    "first_start": ("Sequential", ("What starts moving first?", "What moves first?", "Which object is first to move?")),
    "last_start": (
        "Sequential",
        ("What starts moving last?", "Which object is last to start?", "What begins to move last?"),
    ),
    "first_stop": ("Sequential", ("What stops first?", "Which object is first to stop?", "What stops moving first?")),
    "last_stop": ("Sequential", ("What stops last?", "Which object is last to stop?", "What stops moving last?")),
    "after_start": (
        "Sequential",
        (
            "What starts moving after {x} starts?",
            "What starts later than {x}?",
            "After {x} has started, what starts moving?",
        ),
    ),
    "before_start": (
        "Sequential",
        (
            "What starts moving before {x} starts?",
            "What starts earlier than {x}?",
            "What moves before {x} starts?",
        ),
    ),
    "after_stop": (
        "Sequential",
        (
            "What starts moving once {x} has stopped?",
            "After {x} has stopped, what starts moving?",
            "What starts after {x} stops?",
        ),
    ),
    # Causal: what brings about what
    "push_object": ("Causal", ("What does {x} push?", "What is set in motion by {x}?", "What does {x} make move?")),
    "hit_object": (
        "Causal",
        (
            "What started moving after it was hit by {x}?",
            "What moves because {x} hit it?",
            "What moves when {x} bumps into it?",
        ),
    ),
    "pusher": ("Causal", ("What makes {x} move?", "What pushes {x}?", "What sets {x} in motion?")),
    "blocker": ("Causal", ("What stops {x}?", "What is in the way of {x}?", "What makes {x} stop?")),
    "blocked": ("Causal", ("What is stopped by {x}?", "What does {x} block?", "What has to stop because of {x}?")),
    "leader": ("Causal", ("What leads {x} along?", "What is {x} running after?", "Because of what does {x} run?")),
    # Counterfactual: what would have happened without
    "cf_still": (
        "Counterfactual",
        (
            "What would stay still without {x}?",
            "If {x} were gone, what would not move?",
            "What would never have moved if {x} had not been there?",
        ),
    ),
    "cf_pusher": (
        "Counterfactual",
        (
            "Without what would {x} have kept still?",
            "If what were gone, would {x} not move?",
            "Without what would {x} never have moved?",
        ),
    ),
    "cf_others": (
        "Counterfactual",
        (
            "What would still move without {x}?",
            "If {x} were gone, what would move all the same?",
            "What else would have moved if {x} had not been there?",
        ),
    ),
    "cf_blocked": (
        "Counterfactual",
        (
            "What would have kept moving if {x} had not been there?",
            "What would have gone on without {x}?",
            "If {x} were gone, what would not have stopped?",
        ),
    ),
    "cf_blocker": (
        "Counterfactual",
        (
            "Without what would {x} have kept moving?",
            "If what were gone, would {x} not have stopped?",
            "Without what would {x} have gone on?",
        ),
    ),
    "cf_chaser": (
        "Counterfactual",
        (
            "What would have nothing to follow without {x}?",
            "If {x} were gone, what would have nothing to chase?",
            "What would have nothing to chase if {x} had not been there?",
        ),
    ),
    "cf_leader": (
        "Counterfactual",
        (
            "Without what would {x} have nothing to follow?",
            "If what were gone, would {x} have nothing to chase?",
            "Without what would {x} have nothing to chase?",
        ),
    ),
}
"""Template key -> (question type, phrasings)."""

PAIR_PHRASES: dict[str, tuple[str, tuple[str, ...]]] = {
    "both_move": ("Descriptive", ("Which two objects move?", "What are the two moving objects?")),
    "both_direction": ("Descriptive", ("Which two objects move {d}?", "What are the two objects going {d}?")),
    "touch": ("Causal", ("Which two objects run into each other?", "Which two objects bump into each other?")),
}
"""Templates whose answer is two objects."""

DIRECTION_WORDS: dict[str, tuple[str, ...]] = {
    "left": ("left", "to the left"),
    "right": ("right", "to the right"),
    "up": ("up", "upwards"),
    "down": ("down", "downwards"),
}

PLAIN_PHRASES = ("the {name}", "a {name}", "{name}")
"""Expressions that name an object by its looks."""

MOTION_PHRASES: dict[str, tuple[str, ...]] = {
    "moves": ("the {noun} that moves {d}", "the {noun} moving {d}", "the {noun} that travels {d}"),
    "grows": ("the {noun} that gets bigger", "the growing {noun}"),
    "shrinks": ("the {noun} that gets smaller", "the shrinking {noun}"),
    "zigzags": ("the {noun} that goes back and forth", "the {noun} moving to and fro"),
    "turns": ("the {noun} that changes its direction", "the {noun} that takes a turn"),
    "hides": ("the {noun} that disappears and comes back", "the {noun} that passes behind the screen"),
    "push_object": ("the {noun} that is pushed by {x}", "the {noun} hit by {x}"),
    "pusher": ("the {noun} that pushes {x}", "the {noun} running into {x}"),
    "blocker": ("the {noun} that stops {x}", "the {noun} in the way of {x}"),
    "blocked": ("the {noun} that is stopped by {x}", "the {noun} that cannot pass {x}"),
    "leader": ("the {noun} that is chased by {x}", "the {noun} followed by {x}"),
    "cf_chaser": ("the {noun} that follows {x}", "the {noun} chasing {x}"),
    "first_start": ("the {noun} that moves first", "the first {noun} to move"),
    "last_start": ("the {noun} that starts moving last", "the last {noun} to start moving"),
}
"""Motion expressions by the fact they state; ``{noun}`` is "object" or the object's shape."""

MULTI_PHRASES: dict[str, tuple[str, ...]] = {
    "movers": ("the objects that move", "all moving objects", "everything that moves"),
    "stills": ("the objects that stay still", "all objects that never move", "everything that keeps still"),
    "direction": ("the objects that move {d}", "everything moving {d}"),
    "shape": ("all the {nouns}", "the {nouns}"),
}
"""Expressions for several objects."""
