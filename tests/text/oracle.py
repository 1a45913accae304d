"""PyPI's `tokenizers` set up from the vocabulary of a GGUF file, as the models' own tokenizer.json
files do it, and the strings to try it on."""

import random

from gguf import GGUFReader
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
          r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# llama.cpp's split for files that name none; there is no tokenizer.json behind it.
DEFAULT = [r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"]


def pre_tokenizer(name):
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = lambda pattern: pre_tokenizers.Split(Regex(pattern), "isolated")
    if name == "gpt-2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if name in ("smollm", "starcoder"):
        return pre_tokenizers.Sequence([
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    if name in ("llama-bpe", "qwen2"):
        pattern = LLAMA3 if name == "llama-bpe" else QWEN2
        return pre_tokenizers.Sequence([split(pattern), byte_level])
    if name == "default":
        return pre_tokenizers.Sequence([split(pattern) for pattern in DEFAULT] + [byte_level])
    raise ValueError(f"no oracle for the pre-tokenizer {name}")


def build(name, tokens, types, merges):
    """A Tokenizer; control tokens are special, so `encode_special_tokens` turns them off."""
    vocabulary = {token: index for index, token in enumerate(tokens)}
    pairs = [tuple(merge.split(" ")) for merge in merges]
    tokenizer = Tokenizer(models.BPE(vocabulary, pairs, ignore_merges=name == "llama-bpe"))
    if name == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizer(name)
    tokenizer.decoder = decoders.ByteLevel()
    special = lambda kind: AddedToken("", normalized=False, special=kind != USER_DEFINED)
    for token, kind in zip(tokens, types):
        if kind in (UNKNOWN, CONTROL, USER_DEFINED):
            added = special(kind)
            added.content = token
            add = tokenizer.add_tokens if kind == USER_DEFINED else tokenizer.add_special_tokens
            add([added])
    return tokenizer


def read(path):
    """(pre, tokens, types, merges, chat template or None) of a GGUF file."""
    fields = GGUFReader(path).fields
    value = lambda key: fields[f"tokenizer.ggml.{key}"].contents()
    template = fields.get("tokenizer.chat_template")
    return (value("pre"), value("tokens"), value("token_type"), value("merges"),
            template.contents() if template else None)


WORDS = ("the of and Robert Boulter didn't we'll I'VE they're it's O'Neill 'tis 'S 'LL '\u017f "
         "x'\u017f na\u00efve Stra\u00dfe \u00c9COLE "
         "\u03b5\u03bb\u03bb\u03b7\u03bd\u03b9\u03ba\u03ac "
         "\u041c\u043e\u0441\u043a\u0432\u0430 \u304b\u306a \u304c \u6f22\u5b57 "
         "\ud55c\uad6d\uc5b4 \u0928\u092e\u0938\u094d\u0924\u0947 "
         "\u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u05e2\u05d1\u05e8\u05d9\u05ea "
         "\u0e44\u0e17\u0e22 \U0001f44d\U0001f3fd \U0001f468\u200d\U0001f469\u200d\U0001f467 "
         "\U0001f1e9\U0001f1ea http://a.b/c?d=e&f foo_bar() != == -> /* */ ... -- \u2014 "
         "\u2026 \u201cquoted\u201d $3.50 \u20ac99 100% C++20 1234567 3.14159 2023-10-05 "
         "\u0661\u0662\u0663 \u00b2 \u00bd \u2167 \u2460").split(" ")
SPACES = [" ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", " \n", "\n ", "\u00a0", "\u0085", "\u2003",
          "\u3000", "\u200b", "\u180e", "\u2028", "\x0b", "\x0c", "\x1c", "\x1f", "\x00",
          " \t \n  "]


def stand_ins():
    """(byte, the character that stands for it in byte-level vocabularies)."""
    spare = 0x100
    for byte in range(256):
        if 0x21 <= byte <= 0x7e or 0xa1 <= byte <= 0xff and byte != 0xad:
            yield byte, chr(byte)
        else:
            yield byte, chr(spare)
            spare += 1


def any_character(rng):
    """A code point of any plane; the crowded ones and the combining marks more often."""
    choice = rng.random()
    if choice < 0.25:
        return chr(rng.randrange(0x20, 0x7f))
    if choice < 0.4:
        return chr(rng.randrange(0xa0, 0x3100))
    if choice < 0.5:
        return chr(rng.choice([rng.randrange(0x300, 0x370), rng.randrange(0x1100, 0x1200),
                               rng.randrange(0x8d0, 0x900), rng.randrange(0x1ab0, 0x1b00),
                               rng.randrange(0x1e00, 0x2000)]))
    code = rng.randrange(0x110000) if choice < 0.75 else rng.randrange(0x20000)
    return chr(code) if not 0xd800 <= code < 0xe000 else "\ufffd"


def strings(count, special, seed):
    rng = random.Random(seed)
    near = [token[:-1] for token in special] + [token.upper() for token in special]
    for index in range(count):
        style = index % 5
        parts = []
        for _ in range(rng.randrange(1, 24)):
            choice = rng.random()
            if style == 0:
                parts.append(any_character(rng))
            elif choice < 0.35:
                parts.append(rng.choice(WORDS))
            elif choice < 0.6:
                parts.append(rng.choice(SPACES) * rng.choice([1, 1, 1, 2, 5]))
            elif choice < 0.7:
                parts.append(str(rng.randrange(10 ** rng.randrange(1, 12))))
            elif choice < 0.85 or style == 1 or not special:
                parts.append("".join(any_character(rng) for _ in range(rng.randrange(1, 6))))
            elif choice < 0.95:
                parts.append(rng.choice(special))
            else:
                parts.append(rng.choice(near))
        yield "".join(parts)


def long_words(seed):
    """Words of thousands of letters, where the merges take another road than in short ones."""
    rng = random.Random(seed)
    for alphabet in ("a", "ab", "the", "abcdefghijklmnopqrstuvwxyz", "=", " ",
                     "\u0430\u043b\u0435"):
        for length in (47, 48, 49, 200, 3000):
            yield "".join(rng.choice(alphabet) for _ in range(length))
