"""Tokenizers: published Llama sentencepiece folders with their old added-token rule, and ``tokenizer.json`` folders.

LISA's and MoRA's weights were trained with the slow Llama tokenizer of transformers 4.31, which strips the text on both
sides of ``[SEG]``, ``<im_start>`` and ``<im_end>`` before it is cut into pieces. Later versions open the same folder
with other ids. Rule "legacy" is the old one; rule "plain" leaves the text as it is, for bases that never saw the old.
"""

from __future__ import annotations

import abc
import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import sentencepiece
import tokenizers

from datasets.tokenizer_files import Special, read_added_tokens, read_optional_object, read_specials
from utils.batch import IMAGE_TOKEN_INDEX
from utils.errors import ConfigError, MoraError, TokenizerError
from utils.files import POINTER, atomic_write, is_pointer, not_a_file, write_json

RULES = ("legacy", "plain")
RULE_KEY = "mora_tokenization"
"""Key of tokenizer_config.json under which a saved folder remembers its rule."""

IMAGE = "<image>"

_PROBE = "What moves to the left after it was hit? It is the red square [SEG] [LOC]."


class MoraTokenizer(abc.ABC):
    """Text to ids and back, with LLaVA's image placeholder; made by :func:`load_tokenizer`.

    Attributes:
        rule: "legacy" or "plain".
        bos_token, eos_token: strings; no BOS is put in front where the files say that there is none.
        bos_id, eos_id: their ids.
    """

    def __init__(self, folder: Path, rule: str, config: dict, specials: dict[str, Special]):
        self.folder = folder
        self.rule = rule
        self.config = config
        self.specials = specials
        self.bos_token = specials["bos_token"].content if "bos_token" in specials else None
        self.eos_token = specials["eos_token"].content
        self.bos_id = None if self.bos_token is None else self.id_of(self.bos_token)
        self.eos_id = self.id_of(self.eos_token)

    @abc.abstractmethod
    def __len__(self) -> int:
        """Number of ids, added tokens included: the rows an embedding needs."""

    @abc.abstractmethod
    def find(self, token: str) -> int | None:
        """Id of one token of the vocabulary, None if it has no such token."""

    @abc.abstractmethod
    def holds(self, token: int) -> bool:
        """Whether an id below ``len`` stands for a token; embeddings may have rows for which there is none."""

    @abc.abstractmethod
    def add_tokens(self, new_tokens: Sequence[str]) -> int:
        """Append tokens that the vocabulary lacks, as ordinary (not special) added tokens.

        Returns:
            How many were new.
        """

    @abc.abstractmethod
    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """Text of ids; negative ids (image placeholder, ignored labels) are left out.

        Args:
            ids: any iterable of integers.
            skip_special_tokens: leave out BOS, EOS, unk and pad; ``[SEG]`` and the like stay.

        Raises:
            TokenizerError: an id that the vocabulary lacks (embeddings may have more rows than there are tokens).
        """

    def _unknown(self, token: int) -> TokenizerError:
        return TokenizerError(
            f"{self.folder}: token id {token} was written, which the tokenizer ({len(self)} tokens) lacks; is it the "
            "one that was saved with the weights?"
        )

    @abc.abstractmethod
    def _pieces(self, text: str) -> list[tuple[int, int]]:
        """(id, character where the piece begins) for a text without image placeholder; no BOS."""

    @abc.abstractmethod
    def _write_vocabulary(self, folder: Path) -> None:
        """Write the files that hold the vocabulary, in the format they were read from."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text, BOS first if there is one, IMAGE_TOKEN_INDEX at every ``<image>``; each chunk between is cut
        on its own."""
        return self.encode_with_offsets(text)[0]

    def encode_with_offsets(self, text: str, cut: int = 0) -> tuple[list[int], list[int]]:
        """As :meth:`encode`, with the character of ``text`` where each id begins.

        Args:
            text: any.
            cut: a character before which the text is cut apart as well; no piece crosses it.

        Returns:
            ids and begins, equally long; BOS begins at -1. A piece that takes the space before a word begins at it.
        """
        ids, begins = ([], []) if self.bos_id is None else ([self.bos_id], [-1])
        position = 0
        for index, chunk in enumerate(text.split(IMAGE)):
            if index:
                ids.append(IMAGE_TOKEN_INDEX)
                begins.append(position)
                position += len(IMAGE)
            first = max(0, cut - position)
            for part in filter(None, (chunk[:first], chunk[first:])):
                for token, begin in self._pieces(part):
                    ids.append(token)
                    begins.append(position + begin)
                position += len(part)
        return ids, begins

    def id_of(self, token: str) -> int:
        """Id of one token such as ``[SEG]``.

        Raises:
            TokenizerError: the vocabulary has no such token (or it is the unknown one).
        """
        found = self.find(token)
        if found is None:
            raise TokenizerError(
                f"{self.folder}: the tokenizer has no token {token!r}; take the tokenizer that belongs to the MoRA or "
                f'LISA weights, or add it with add_tokens(["{token}"]) and train its embedding'
            )
        return found

    def digest(self) -> str:
        """16 hexadecimal digits of what it does: its rule, the text of every id, and how a sentence is cut."""
        texts = [self.decode([number]) for number in range(len(self))]
        said = json.dumps([self.rule, texts, self.encode(_PROBE)])
        return hashlib.sha256(said.encode()).hexdigest()[:16]

    def save(self, folder: str | Path) -> None:
        """Write a folder that :func:`load_tokenizer` opens as the same tokenizer; other files in it are kept.

        Raises:
            OSError: when the disk is full; each file is either the old one or the new one.
        """
        folder = Path(folder)
        self._write_vocabulary(folder)
        source = self.folder / "special_tokens_map.json"
        if source.is_file():
            write_json(folder / source.name, read_optional_object(source))
        write_json(folder / "tokenizer_config.json", {**self.config, RULE_KEY: self.rule})


class SentencePieceTokenizer(MoraTokenizer):
    """A published Llama folder: ``tokenizer.model``, ``added_tokens.json``, cut by the sentencepiece library."""

    def __init__(self, folder: Path, rule: str, config: dict):
        self._model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
        self._model_bytes = (folder / "tokenizer.model").read_bytes()
        pieces = [self._model.id_to_piece(token) for token in range(self._model.get_piece_size())]
        self._added = read_added_tokens(folder, pieces)
        super().__init__(folder, rule, config, read_specials(folder, config))
        self._compile()

    def _compile(self) -> None:
        """Prepare what depends on the added tokens."""
        self._names = {token: name for name, token in self._added.items()}
        atoms = {special.content for special in self.specials.values()} | set(self._added)
        longest_first = sorted(atoms, key=lambda atom: (-len(atom), atom))
        self._split = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
        self._atoms = atoms
        # In 4.31 a token strips both sides unless its files describe it as an AddedToken that does not.
        described_last = sorted(self.specials.values(), key=lambda special: special.strips != (True, True))
        self._strips = {special.content: special.strips for special in described_last}

    def __len__(self) -> int:
        """Up to the last id of the pieces and of the added tokens, which usually follow them without a gap."""
        return max(self._model.get_piece_size(), *(token + 1 for token in self._added.values()), 0)

    def find(self, token: str) -> int | None:
        """Id of an added token or of a piece, None if there is neither."""
        if token in self._added:
            return self._added[token]
        found = self._model.piece_to_id(token)
        return None if found == self._model.unk_id() and token != self._model.id_to_piece(found) else found

    def holds(self, token: int) -> bool:
        """Whether it is the id of a piece or of an added token."""
        return 0 <= token < self._model.get_piece_size() or token in self._names

    def add_tokens(self, new_tokens: Sequence[str]) -> int:
        """Append missing tokens behind the last id, in the given order; they strip as ``[SEG]`` does."""
        missing = [token for token in dict.fromkeys(new_tokens) if self.find(token) is None]
        for token in missing:
            self._added[token] = len(self)
        self._compile()
        return len(missing)

    def _pieces(self, text: str) -> list[tuple[int, int]]:
        parts = self._split.split(text)
        begins = [0]
        for part in parts[:-1]:
            begins.append(begins[-1] + len(part))
        pieces = []
        for index, part in enumerate(parts):
            if part in self._atoms:
                pieces.append((self.id_of(part), begins[index]))
                continue
            begin = begins[index]
            if self.rule == "legacy":
                if index > 0 and self._strips.get(parts[index - 1], (True, True))[1]:
                    begin += len(part) - len(part.lstrip())
                    part = part.lstrip()
                if index + 1 < len(parts) and self._strips.get(parts[index + 1], (True, True))[0]:
                    part = part.rstrip()
            if part:
                pieces += [(token, begin + offset) for token, offset in self._cut(part)]
        return pieces

    def _cut(self, text: str) -> list[tuple[int, int]]:
        """(id, character where it begins) by sentencepiece alone; the space it puts in front begins at 0."""
        surface = [0]  # character of ``text`` at every byte of " " + text
        for index, character in enumerate(text.replace("▁", " ")):
            surface += [index] * len(character.encode())
        pieces = []
        position = 0
        for token, piece in zip(self._model.encode(text, out_type=int), self._model.encode(text, out_type=str)):
            pieces.append((token, surface[min(position, len(surface) - 1)]))
            position += 1 if self._model.is_byte(token) else len(piece.replace("▁", " ").encode())
        if position != len(surface):
            raise TokenizerError(
                f"{self.folder}: tokenizer.model rewrites its text (normalisation), so answers cannot be located in "
                "it; use a Llama tokenizer with identity normalisation"
            )
        return pieces

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """As in the base class; rule "legacy" puts the spaces around added tokens that transformers 4.31 puts."""
        specials = {special.content for special in self.specials.values()}
        runs: list[str | list[str]] = []
        for token in map(int, ids):
            if token < 0:
                continue
            name = self._names.get(token) or self._piece(token)
            if skip_special_tokens and name in specials:
                continue
            if token in self._names:
                runs.append(name)
            elif runs and isinstance(runs[-1], list):
                runs[-1].append(name)
            else:
                runs.append([name])
        between = " " if self.rule == "legacy" else ""
        return between.join(run if isinstance(run, str) else self._join(run, specials, between) for run in runs)

    def _piece(self, token: int) -> str:
        if not self.holds(token):
            raise self._unknown(token)
        return self._model.id_to_piece(token)

    def _join(self, names: list[str], specials: set[str], between: str) -> str:
        """Text of pieces; special tokens among them are written out, with 4.31's space before one that follows text."""
        text = ""
        current: list[str] = []
        after_special = False
        for index, name in enumerate(names):
            if name in specials:
                if index and not after_special:
                    text += between
                text += self._model.decode(current) + name
                current = []
            else:
                current.append(name)
            after_special = name in specials
        return text + self._model.decode(current)

    def _write_vocabulary(self, folder: Path) -> None:
        with atomic_write(folder / "tokenizer.model") as stream:
            stream.write(self._model_bytes)
        write_json(folder / "added_tokens.json", self._added)


class FastTokenizer(MoraTokenizer):
    """A ``tokenizer.json`` folder, cut by the tokenizers library; rule "plain" only."""

    def __init__(self, folder: Path, config: dict):
        self._engine = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        super().__init__(folder, "plain", config, read_specials(folder, config))

    def __len__(self) -> int:
        """Size of the vocabulary with added tokens."""
        return self._engine.get_vocab_size(with_added_tokens=True)

    def find(self, token: str) -> int | None:
        """Id of a token, None if the vocabulary lacks it."""
        return self._engine.token_to_id(token)

    def holds(self, token: int) -> bool:
        """Whether the vocabulary, added tokens included, has that id."""
        return token >= 0 and self._engine.id_to_token(token) is not None

    def add_tokens(self, new_tokens: Sequence[str]) -> int:
        """Append missing tokens behind the last id, in the given order."""
        missing = [token for token in dict.fromkeys(new_tokens) if self.find(token) is None]
        return self._engine.add_tokens([tokenizers.AddedToken(token, normalized=False) for token in missing])

    def _pieces(self, text: str) -> list[tuple[int, int]]:
        encoding = self._engine.encode(text, add_special_tokens=False)
        return [(token, begin) for token, (begin, _) in zip(encoding.ids, encoding.offsets)]

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """As in the base class."""
        kept = [token for token in map(int, ids) if token >= 0]
        if skip_special_tokens:
            specials = {self.find(special.content) for special in self.specials.values()}
            kept = [token for token in kept if token not in specials]
        for token in kept:
            if not self.holds(token):
                raise self._unknown(token)
        return self._engine.decode(kept, skip_special_tokens=False)

    def _write_vocabulary(self, folder: Path) -> None:
        with atomic_write(folder / "tokenizer.json", "w") as stream:
            stream.write(self._engine.to_str(pretty=True))


def load_tokenizer(folder: str | Path, rule: str | None = None) -> MoraTokenizer:
    """Open a tokenizer folder.

    Args:
        folder: with ``tokenizer.json`` or ``tokenizer.model`` (a published LISA or MoRA folder has the latter).
        rule: "legacy" (needs ``tokenizer.model``) or "plain"; None: the one the folder remembers, else "legacy" for a
            ``tokenizer.model`` and "plain" for a ``tokenizer.json``.

    Raises:
        TokenizerError: neither file is there, a file is damaged, or the rule does not fit the files.
        ConfigError: unknown rule.
    """
    folder = Path(folder)
    path = folder / "tokenizer_config.json"
    config = read_optional_object(path)
    has_model, has_json = (_has(folder / name) for name in ("tokenizer.model", "tokenizer.json"))
    if rule is None and config.get(RULE_KEY) is not None and config[RULE_KEY] not in RULES:
        raise TokenizerError(f"{path}: {RULE_KEY!r} must be one of {', '.join(RULES)}, not {config[RULE_KEY]!r}")
    rule = rule or config.get(RULE_KEY) or ("legacy" if has_model else "plain")
    if rule not in RULES:
        raise ConfigError(f"tokenization rule {rule!r} is unknown; choose one of {', '.join(RULES)}")
    if not has_model and not has_json:
        raise TokenizerError(
            f"{folder}: neither tokenizer.model nor tokenizer.json is there; give the folder of a published or "
            "exported model"
        )
    if rule == "legacy" and not has_model:
        raise TokenizerError(
            f"{folder}: the legacy rule cuts with sentencepiece and needs tokenizer.model, but only tokenizer.json is "
            "there; copy tokenizer.model beside it, or use the plain rule if the weights never saw the legacy one"
        )
    fast = rule == "plain" and has_json
    try:
        return FastTokenizer(folder, config) if fast else SentencePieceTokenizer(folder, rule, config)
    except MoraError:
        raise
    except Exception as error:  # both libraries raise their own and bare RuntimeError/Exception types
        path = folder / ("tokenizer.json" if fast else "tokenizer.model")
        reason = POINTER if is_pointer(path) else f"cannot be read ({error}); download or write the folder again"
        raise TokenizerError(f"{path}: {reason}") from error


def _has(path: Path) -> bool:
    """Whether the file is there.

    Raises:
        TokenizerError: something else is: a folder, a pipe, a link to nothing.
    """
    if not os.path.lexists(path):
        return False
    reason = not_a_file(path)
    if reason:
        raise TokenizerError(f"{path}: {reason}; give the folder of a published or exported model")
    return True
