"""The tokenizer and chat template of a toy: same bytes every time, any vocabulary size.

    id │ 0: 256 byte tokens │ merges learned from this project's text │ pseudo-words │ 64 special │

Real merges make prompts of a realistic token count. A random model mostly answers in
pseudo-words, which no text encodes to but which decode to something readable. Special tokens sit
at the offsets of the published vocabularies. Knows strings and ids; does not know models.
"""

from __future__ import annotations

from importlib import resources
from typing import Any

from mserve.toy.shape import NUM_SPECIAL_TOKENS, Arch, ToyShape

# A word with its leading blank, up to three digits, a run of signs, line ends, blanks.
_SPLIT = r" ?\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s*[\r\n]+|\s+(?!\S)|\s+"

_SPECIAL = (
    *("]!p~[", "<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>", "<reponame>"),
    *("<filename>", "<gh_stars>", "<issue_start>", "<issue_comment>", "<issue_closed>"),
    *("<jupyter_start>", "<jupyter_text>", "<jupyter_code>", "<jupyter_output>"),
    *("<empty_output>", "<commit_before>", "<commit_msg>", "<commit_after>", "]~b]", "[e~["),
    *("]!d~[", "<function_call>", "<code_interpreter>", "]<]speech[>[", "]<]image[>["),
    *("]<]video[>[", "]<]start of speech[>[", "]<]end of speech[>[", "]<]start of image[>["),
    *("]<]end of image[>[", "]<]start of video[>[", "]<]end of video[>[", "]<]vision pad[>["),
    *("]~!b[", "<jupyter_error>", "<add_file>", "<delete_file>", "<rename_file>", "<edit_file>"),
    *("<commit_message>", "<empty_source_file>", "<repo_struct>", "<code_context>"),
    *("<file_content>", "<source_files>", "<pr_start>", "<review_comment>", "<filepath>"),
    "<file_sep>",
)
"""Offsets 0 to 49. They never show in decoded text."""

_VISIBLE: dict[Arch, dict[int, str]] = {
    "m2": {50: "<think>", 51: "</think>", 52: "<minimax:tool_call>", 53: "</minimax:tool_call>"},
    "m3": {58: "]<]minimax[>[", 59: "<mm:think>", 60: "</mm:think>"},
}
"""Added tokens that are not special: single ids, and part of the decoded text."""

_CONSONANTS = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "st", "tr")
_SYLLABLES = tuple(head + vowel for head in _CONSONANTS for vowel in "aeiou")
_WORD_STRIDE = 7919  # coprime to the number of words, so that neighbours look different


def tokenizer_json(arch: Arch, vocab_size: int) -> str:
    """The content of tokenizer.json: ``vocab_size`` tokens, the last 64 of them special."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    vocab, merges = _vocabulary(sorted(pre_tokenizers.ByteLevel.alphabet()), vocab_size)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    add_family_tokens(tokenizer, arch)
    return tokenizer.to_str(pretty=True) + "\n"


def add_family_tokens(tokenizer: Any, arch: Arch) -> None:
    """Append the 64 tokens that the family adds to a BPE, in their published order, to a
    ``tokenizers.Tokenizer``."""
    from tokenizers import AddedToken

    visible = _VISIBLE[arch]
    for offset in range(NUM_SPECIAL_TOKENS):
        if offset in visible:
            tokenizer.add_tokens([AddedToken(visible[offset], special=False, normalized=False)])
        else:
            known = offset < len(_SPECIAL)
            text = _SPECIAL[offset] if known else f"<reserved_{offset}>"
            tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False)])


def tokenizer_config(shape: ToyShape) -> dict[str, Any]:
    """The content of tokenizer_config.json."""
    return {
        "add_bos_token": False,
        "bos_token": "]~!b[",
        "clean_up_tokenization_spaces": False,
        "eos_token": "[e~[",
        "model_max_length": shape.max_position_embeddings,
        "pad_token": "]!p~[",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "]!d~[",
    }


def chat_template(arch: Arch) -> str:
    """The content of chat_template.jinja, in the family's form."""
    return _package_text(f"chat_{arch}.jinja")


def _vocabulary(
    alphabet: list[str], vocab_size: int
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Ids of the plain tokens, and the merges whose result is among them."""
    num_plain = vocab_size - NUM_SPECIAL_TOKENS
    vocab = {token: number for number, token in enumerate(alphabet)}
    merges: list[tuple[str, str]] = []
    for line in _package_text("merges.txt").splitlines():
        if len(vocab) == num_plain:
            return vocab, merges
        left, right = line.split(" ")
        vocab.setdefault(left + right, len(vocab))
        merges.append((left, right))
    number = 0
    while len(vocab) < num_plain:
        vocab.setdefault(_pseudo_word(number), len(vocab))
        number += 1
    return vocab, merges


def _pseudo_word(number: int) -> str:
    """A word of three syllables and its leading blank, in the alphabet of byte-level tokens."""
    count = len(_SYLLABLES)
    scattered = number * _WORD_STRIDE
    last, middle, first = scattered, scattered // count, scattered // count**2
    return "Ġ" + "".join(_SYLLABLES[index % count] for index in (first, middle, last))


def _package_text(name: str) -> str:
    return (resources.files("mserve.toy") / name).read_text(encoding="utf-8")
