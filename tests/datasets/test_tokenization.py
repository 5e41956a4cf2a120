"""Tokenizers: the old Llama rule, the plain rule, and what a folder remembers."""

from __future__ import annotations

import json
import pickle
import random

import pytest
import sentencepiece
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from datasets.tokenization import FastTokenizer, SentencePieceTokenizer, load_tokenizer
from tests.datasets.conftest import LLAMA_SENTENCES
from utils.batch import IMAGE_TOKEN_INDEX
from utils.errors import ConfigError, TokenizerError

DIGESTS = {"tiny_tokenizer": "cdade4a74b5b49f3", "tiny_qwen_tokenizer": "f5275455132de799"}


@pytest.fixture(scope="module")
def pieces(llama_folder):
    """The sentencepiece model alone, as the oracle for one chunk."""
    return sentencepiece.SentencePieceProcessor(model_file=str(llama_folder / "tokenizer.model")).encode


@pytest.fixture
def tiny(project_root):
    return load_tokenizer(project_root / "assets" / "tiny_tokenizer", "plain")


@pytest.fixture(scope="module")
def golden(shared_data):
    return json.loads((shared_data / "lisa_golden" / "prompts.json").read_text())


@pytest.fixture(scope="module")
def golden_tokenizer(shared_data):
    return load_tokenizer(shared_data / "lisa_golden" / "lisa_tiny", "legacy")


def test_ids_of_the_original(golden, golden_tokenizer):
    texts = [(sample["prompt_final"], sample["input_ids"]) for sample in golden["samples"]]
    texts += [(s["eval_prompt"], s["eval_input_ids"]) for s in golden["samples"] if "eval_prompt" in s]
    for text, ids in texts:
        assert golden_tokenizer.encode(text) == ids
    assert len(golden_tokenizer) == golden["len_tokenizer"]
    for token, expected in golden["special_ids"].items():
        assert golden_tokenizer.id_of(token) == expected


def test_decoding_of_the_original(golden, golden_tokenizer):
    assert golden["decode_cases"]
    for case in golden["decode_cases"]:
        assert golden_tokenizer.decode(case["ids"], case["skip_special_tokens"]) == case["text"]


def test_legacy_rule_strips_beside_added_tokens_only(llama_folder, pieces):
    tokenizer = load_tokenizer(llama_folder, "legacy")
    seg = tokenizer.id_of("[SEG]")
    assert tokenizer.encode("Sure, [SEG] \n.") == [1, *pieces("Sure,"), seg, *pieces(".")]
    assert tokenizer.encode("[SEG] [SEG]") == [1, seg, seg]
    assert tokenizer.encode(" a </s> b ") == [1, *pieces(" a "), 2, *pieces(" b ")]
    start, end = tokenizer.id_of("<im_start>"), tokenizer.id_of("<im_end>")
    expected = [1, *pieces("x"), start, IMAGE_TOKEN_INDEX, end, *pieces("What")]
    assert tokenizer.encode("x\n\n<im_start><image><im_end>\nWhat") == expected


def test_legacy_rule_strips_beside_special_tokens_given_as_bare_strings(llama_folder, pieces, tmp_path):
    for source in llama_folder.iterdir():
        (tmp_path / source.name).write_bytes(source.read_bytes())
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": "</s>"}))
    assert load_tokenizer(tmp_path).encode("a </s> b") == [1, *pieces("a"), 2, *pieces("b")]
    left_only = {"content": "</s>", "lstrip": True, "rstrip": False}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": left_only}))
    assert load_tokenizer(tmp_path).encode("a </s> b") == [1, *pieces("a"), 2, *pieces(" b")]


def test_plain_rule_keeps_the_text(llama_folder, pieces):
    tokenizer = load_tokenizer(llama_folder, "plain")
    assert isinstance(tokenizer, SentencePieceTokenizer)
    text = "Sure, [SEG] \n."
    ids = tokenizer.encode(text)
    assert ids == [1, *pieces("Sure, "), tokenizer.id_of("[SEG]"), *pieces(" \n.")]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_loc_behaves_as_seg(llama_folder, pieces):
    tokenizer = load_tokenizer(llama_folder)
    before = len(tokenizer)
    assert tokenizer.add_tokens(["[SEG]", "[LOC]", "[LOC]"]) == 1
    loc = tokenizer.id_of("[LOC]")
    assert (loc, len(tokenizer)) == (before, before + 1)
    text = "Sure, [SEG] , [LOC] ."
    ids = tokenizer.encode(text)
    assert ids == [1, *pieces("Sure,"), tokenizer.id_of("[SEG]"), *pieces(","), loc, *pieces(".")]
    assert "[LOC]" in tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("rule", ["legacy", "plain"])
def test_saved_folder_reloads_as_the_same(llama_folder, tmp_path, rule):
    tokenizer = load_tokenizer(llama_folder, rule)
    tokenizer.add_tokens(["[LOC]"])
    tokenizer.save(tmp_path / "out")
    again = load_tokenizer(tmp_path / "out")
    assert (again.rule, len(again)) == (rule, len(tokenizer))
    assert json.loads((tmp_path / "out" / "added_tokens.json").read_text())["[LOC]"] == len(tokenizer) - 1
    text = "USER: <im_start><image><im_end>\nwhat? ASSISTANT: Sure, [SEG], [LOC]. </s>"
    assert again.encode(text) == tokenizer.encode(text)
    assert again.decode(tokenizer.encode(text)) == tokenizer.decode(tokenizer.encode(text))
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["model_max_length"] == 512


def test_offsets_point_at_the_text_of_each_piece(llama_folder):
    tokenizer = load_tokenizer(llama_folder, "legacy")
    text = "Zoë \U0001f600 ▁ turns\n <im_start><image><im_end>\n [SEG] .</s> ok"
    ids, begins = tokenizer.encode_with_offsets(text)
    assert begins[0] == -1 and begins == sorted(begins)
    for token in ("[SEG]", "<im_end>", "</s>"):
        assert begins[ids.index(tokenizer.id_of(token))] == text.index(token)
    assert begins[ids.index(IMAGE_TOKEN_INDEX)] == text.index("<image>")
    assert begins[-1] >= text.index(" ok")
    assert begins[ids.index(tokenizer.id_of("[SEG]")) + 1] == text.index(".")


def test_missing_seg_names_the_folder_and_the_remedy(llama_folder, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes((llama_folder / "tokenizer.model").read_bytes())
    tokenizer = load_tokenizer(tmp_path)
    with pytest.raises(TokenizerError, match=r"\[SEG\].*add_tokens") as caught:
        tokenizer.id_of("[SEG]")
    assert str(tmp_path) in str(caught.value)
    assert tokenizer.id_of("<unk>") == 0


def test_unusable_folders(tmp_path, project_root):
    with pytest.raises(TokenizerError, match="neither tokenizer.model nor tokenizer.json"):
        load_tokenizer(tmp_path)
    with pytest.raises(TokenizerError, match="needs tokenizer.model"):
        load_tokenizer(project_root / "assets" / "tiny_tokenizer", "legacy")
    with pytest.raises(ConfigError, match="legacy, plain"):
        load_tokenizer(project_root / "assets" / "tiny_tokenizer", "old")
    (tmp_path / "tokenizer.model").write_bytes(b"not a model")
    with pytest.raises(TokenizerError, match="tokenizer.model"):
        load_tokenizer(tmp_path)


def random_text(rng: random.Random) -> str:
    """Any characters that UTF-8 can hold."""
    ranges = [(1, 0x80), (0x80, 0xD800), (0xE000, 0x110000)]
    return "".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(rng.randrange(1, 30)))


def test_any_text_survives_the_tiny_tokenizer(tiny):
    rng = random.Random(0)
    texts = [random_text(rng) for _ in range(300)] + ["  two  spaces ", "\n\n", "Zoë\tläuft", "a\u2028b", "0<s0>"]
    for text in texts:
        assert tiny.decode(tiny.encode(text), skip_special_tokens=True) == text
        assert all(0 <= token < len(tiny) for token in tiny.encode(text))


def test_any_text_survives_sentencepiece(llama_folder):
    tokenizer = load_tokenizer(llama_folder, "plain")
    rng = random.Random(1)
    for text in [random_text(rng).replace("▁", "") for _ in range(100)] + ["  two  spaces ", "\n\n"]:
        assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == text


def test_tiny_tokenizer_reads_out_at_the_word_before_seg(tiny):
    assert isinstance(tiny, FastTokenizer) and tiny.rule == "plain"
    text = "It is the red circle [SEG] [LOC]."
    circle = tiny.encode(" circle")[1]
    ids = tiny.encode(text)
    assert ids[-4:] == [circle, tiny.id_of("[SEG]"), tiny.id_of("[LOC]"), ids[-1]]
    assert tiny.decode(ids, skip_special_tokens=True) == text


def test_tiny_tokenizer_can_grow_and_be_saved(tiny, tmp_path):
    assert tiny.add_tokens(["[SEG]", "[NEW]"]) == 1
    assert tiny.id_of("[NEW]") == len(tiny) - 1
    tiny.save(tmp_path / "out")
    again = load_tokenizer(tmp_path / "out")
    text = "what <im_start><image><im_end>\nmoves? [SEG] [NEW]é</s>"
    assert again.encode(text) == tiny.encode(text)
    assert (again.rule, len(again)) == ("plain", len(tiny))


@pytest.mark.parametrize(("kind", "folder"), [("llava", "tiny_tokenizer"), ("qwen", "tiny_qwen_tokenizer")])
def test_tiny_tokenizer_is_what_its_script_writes(project_root, tmp_path, monkeypatch, kind, folder):
    from scripts import make_tiny_tokenizer

    monkeypatch.setattr("sys.argv", ["make_tiny_tokenizer", "--kind", kind, "--out", str(tmp_path)])
    make_tiny_tokenizer.main()
    for path in sorted((project_root / "assets" / folder).iterdir()):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


@pytest.fixture
def qwen_folder(tmp_path):
    """A folder with the files of a published Qwen: byte-level pieces, no BOS, no unknown token."""
    folder = tmp_path / "qwen"
    folder.mkdir()
    engine = tokenizers.Tokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    engine.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    engine.train_from_iterator(LLAMA_SENTENCES, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    marks = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
    engine.add_special_tokens([tokenizers.AddedToken(mark, special=True, normalized=False) for mark in marks])
    engine.save(str(folder / "tokenizer.json"))
    engine.model.save(str(folder))
    named = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": None}
    config = {**named, "bos_token": None, "additional_special_tokens": list(marks), "model_max_length": 262144}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_a_folder_without_bos(qwen_folder, tmp_path):
    assert (qwen_folder / "vocab.json").is_file() and (qwen_folder / "merges.txt").is_file()
    tokenizer = load_tokenizer(qwen_folder)
    assert tokenizer.add_tokens(["[SEG]", "[LOC]"]) == 2
    assert (tokenizer.bos_token, tokenizer.bos_id, tokenizer.eos_token) == (None, None, "<|im_end|>")
    assert tokenizer.id_of("[LOC]") == tokenizer.id_of("[SEG]") + 1 == len(tokenizer) - 1
    engine = tokenizers.Tokenizer.from_file(str(qwen_folder / "tokenizer.json"))
    text = (
        "<|im_start|>user\n<0.3 seconds><|vision_start|><|vision_end|>what happens?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.encode(text) == engine.encode(text, add_special_tokens=False).ids
    assert tokenizer.encode("") == [] and tokenizer.encode("<image>") == [IMAGE_TOKEN_INDEX]
    # What Qwen's own tokenizer does before an added token: the space stays a token.
    assert tokenizer.decode(tokenizer.encode("It is [SEG]")[-2:-1]) == " "
    assert tokenizer.decode(tokenizer.encode(text + "[SEG]"), skip_special_tokens=True).endswith("assistant\n[SEG]")
    tokenizer.save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert again.bos_id is None and again.digest() == tokenizer.digest()


def test_a_bos_that_is_not_named_is_llamas(qwen_folder):
    path = qwen_folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["bos_token"]
    path.write_text(json.dumps(config))
    with pytest.raises(TokenizerError, match="no token '<s>'"):
        load_tokenizer(qwen_folder)


def test_digests_of_the_committed_tokenizers(project_root):
    """Weights say which tokenizer they were trained with."""
    digests = {name: load_tokenizer(project_root / "assets" / name).digest() for name in DIGESTS}
    assert digests == DIGESTS


def test_no_piece_crosses_a_cut(tiny):
    text = "USER: what\n [SEG]<image> moves"
    whole, begins = tiny.encode_with_offsets(text)
    cut = text.index(" [SEG]") - 1
    ids, starts = tiny.encode_with_offsets(text, cut)
    assert tiny.encode(text[:cut]) == ids[: len(tiny.encode(text[:cut]))] and cut in starts
    for place in (0, len(text), *(begin for begin in begins[1:])):
        assert tiny.encode_with_offsets(text, place) == (whole, begins)


def test_every_word_of_the_motion_world_is_one_token(tiny):
    phrases = pytest.importorskip("datasets.synthetic.phrases")
    settings = pytest.importorskip("datasets.synthetic.settings")
    texts = [f" {word}" for word in (*settings.COLOURS, *settings.SHAPES)]
    for _, wordings in [*phrases.PHRASES.values(), *phrases.PAIR_PHRASES.values()]:
        texts += wordings
    for group in (phrases.DIRECTION_WORDS, phrases.MOTION_PHRASES, phrases.MULTI_PHRASES):
        texts += [f" {wording}" for wordings in group.values() for wording in wordings]
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    broken = set()
    for text in texts:
        text = (
            text.replace("{x}", "the red circle")
            .replace("{d}", "left")
            .replace("{nouns}", "crosses")
            .replace("{noun}", "square")
        )
        words = [word for word, _ in splitter.pre_tokenize_str(text)]
        broken |= {word for word in words if tiny.find(word) is None}
    assert not broken, f"add to LATER in scripts/make_tiny_tokenizer.py: {sorted(broken)}"


def test_no_question_of_the_motion_world_is_cut_into_pieces(tiny):
    world = pytest.importorskip("datasets.synthetic")
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    for index in range(6):
        settings = world.WorldSettings.hard() if index % 2 else world.WorldSettings()
        video = world.make_video(0, index, settings)
        texts = [question.text for question in video.questions] + [f" {e.text}" for e in video.expressions]
        texts += [f" {question.answer}" for question in video.questions]
        assert len(video.questions) > 0
        for text in texts:
            broken = [word for word, _ in splitter.pre_tokenize_str(text) if tiny.find(word) is None]
            assert not broken, f"add to LATER in scripts/make_tiny_tokenizer.py: {broken}"


def test_fast_llama_like_tokenizer_gives_offsets(tmp_path):
    sentences = ["USER: what does the dog do? ASSISTANT: it sits down."] * 9
    engine = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    engine.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    engine.decoder = decoders.Metaspace(prepend_scheme="first")
    engine.train_from_iterator(sentences, trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>", "<s>", "</s>"]))
    engine.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    text = "USER: the dog ASSISTANT: it sits"
    ids, begins = tokenizer.encode_with_offsets(text)
    answer = [token for token, begin in zip(ids, begins) if begin >= text.index(" it sits")]
    assert tokenizer.decode(answer).strip() == "it sits"


def test_tokenizers_travel_to_workers(llama_folder, tiny):
    for tokenizer in (load_tokenizer(llama_folder), tiny):
        copy = pickle.loads(pickle.dumps(tokenizer))
        assert copy.encode("the dog [SEG].") == tokenizer.encode("the dog [SEG].")
