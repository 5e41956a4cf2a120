"""The reference for what is cached: a session that reads prefix and questions again from their start each time."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from model.backbones import Session, read_rows
from model.layout import Row


class FreshSession(Session):
    """As :class:`model.backbones.Session`, without keys and values."""

    def __init__(self, backbone, prefix, questions):
        self.backbone, self.prefix = backbone, prefix
        self.ids = [torch.zeros(prefix.rows, 0, dtype=torch.long)] * questions

    def append(self, pieces):
        for question, ids in pieces.items():
            self.ids[question] = torch.cat([self.ids[question], ids.cpu()], dim=1)
        lists = [ids.tolist() for ids in self.ids]
        image = bool(self.prefix.pieces)
        rows = [
            Row(self.prefix.pieces, [ids[index] for ids in lists], index if image else -1)
            for index in range(self.prefix.rows)
        ]
        layout, states = read_rows(self.backbone, rows, self.prefix.visual.rows())
        ends = [start + ids.shape[1] for start, ids in zip(layout.starts[0], self.ids)]
        return {k: states[:, ends[k] - ids.shape[1] : ends[k]] for k, ids in pieces.items()}


@contextmanager
def reading(cached: bool):
    """Within, questions are read from the cache, or again from their start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("model.answering.Session", Session if cached else FreshSession)
        yield
