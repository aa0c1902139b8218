"""How BPE vocabularies cut text into words: the rules that `tokenizer.ggml.pre` names.

`source` of a rule is its constant in llama.cpp, src/llama-vocab.cpp (as of llama-cpp-python 0.3.36; prefix
LLAMA_VOCAB_PRE_TYPE_), from which names and options are taken. Where llama.cpp only approximates the expression that
the model was trained with, since C++ has no Unicode categories, its own one, of its tokenizer.json, stands here.

Expressions are Oniguruma's, as the tokenizers library reads them. Each is applied to every piece that those before it
left; matches and the text between them become pieces of their own. CHARACTER_RULES are those of vocabularies whose
letters are characters instead of bytes, and which need no expressions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, kw_only=True, slots=True)
class PreTokenizer:
    """One rule.

    Attributes:
        patterns: the expressions, in the order in which they are applied.
        source: where the rule is from.
        ignore_merges: a word that is a token as a whole becomes that token, whatever the merges say.
        add_bos: begin-of-text is put before a text, unless the file says otherwise.
    """

    patterns: tuple[str, ...]
    source: str
    ignore_merges: bool = False
    add_bos: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class CharacterRule:
    """One rule of those vocabularies whose letters are characters.

    Attributes:
        source: where the rule is from.
        drops_white_space: words are what stands between white space, of any kind, which gives no tokens. If false,
            words are lines and runs of newlines, and tokens are spelled with U+2581 for a space.
        has_newline_tokens: a run of newlines that is a token as a whole becomes that token, whatever the merges say.
        bos_always: begin-of-text is put before a text, even where the file says otherwise, as early ones wrongly do.
    """

    source: str
    drops_white_space: bool = False
    has_newline_tokens: bool = False
    bos_always: bool = False


# As 's|'t|'re|'ve|'m|'ll|'d, which would look for an apostrophe seven times at each word: 3 % of encoding.
_SUFFIX = "'(?:[stmd]|re|ve|ll)"
_SUFFIX_ANY_CASE = "'(?:[sStTmMdD]|[rR][eE]|[vV][eE]|[lL][lL])"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
# As \s*[\r\n]+, without a step back for each space of a run in which there is no newline: the library allows only ten
# million of them, and panics then.
_UP_TO_LAST_NEWLINE = r"(?:[\s&&[^\r\n]]*+[\r\n]++)++"
_SPACES = rf"{_UP_TO_LAST_NEWLINE}|\s+(?!\S)|\s+"
_CJK = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_CJK_AND_HANGUL = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_ASCII_SYMBOL_WORD = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""

_GPT2 = rf"{_SUFFIX}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"(?:{_SUFFIX_ANY_CASE})|{_WORD}|\p{{N}}{{1,3}}|{_SYMBOLS}|{_SPACES}"
_QWEN2 = rf"(?:{_SUFFIX_ANY_CASE})|{_WORD}|\p{{N}}|{_SYMBOLS}|{_SPACES}"
_UFAKZEKA = rf"{_WORD}|\p{{N}}|{_SYMBOLS}|{_SPACES}"
_MINICPM5 = rf"(?:{_SUFFIX_ANY_CASE})|{_WORD}|\p{{N}}+|{_SYMBOLS}|{_SPACES}"
_QWEN35 = (
    rf"(?:{_SUFFIX_ANY_CASE})|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
)
_CASED_WORD = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+{suffix}"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*{suffix}"
)
_CASED_WORD_WITH_SUFFIX = _CASED_WORD.replace("{suffix}", f"(?:{_SUFFIX_ANY_CASE})?")
_SYMBOLS_OR_SLASHES = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_GPT4O = rf"{_CASED_WORD_WITH_SUFFIX}|\p{{N}}{{1,3}}|{_SYMBOLS_OR_SLASHES}|{_SPACES}"
_TEKKEN = rf"{_CASED_WORD.replace('{suffix}', '')}|\p{{N}}|{_SYMBOLS_OR_SLASHES}|{_SPACES}"
_KIMI_WORD = _CASED_WORD_WITH_SUFFIX.replace(r"\p{M}]", r"\p{M}&&[^\p{Han}]]")
_KIMI = rf"\p{{Han}}+|{_KIMI_WORD}|\p{{N}}{{1,3}}|{_SYMBOLS}|{_SPACES}"
_DEEPSEEK3_WORDS = (
    rf"{_ASCII_SYMBOL_WORD}|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}"
)
_SPARK_WORDS = (
    rf"{_ASCII_SYMBOL_WORD}|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+|[\r\n]"
    r"|\s+(?!\S)|\s+"
)
_BAILING = rf"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|{_WORD}|\p{{N}}|{_SYMBOLS}|{_SPACES}"
_SEED_CODER = rf"(?:{_SUFFIX_ANY_CASE})|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}"
_EXAONE_MOE = (
    rf"(?:{_SUFFIX_ANY_CASE})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}[\p{{L}}\p{{M}}]*(?: \p{{L}}[\p{{L}}\p{{M}}]*)*|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]?|{_SPACES}"
)
_JAIS2_SPACES = "".join(
    rf"|\s{{{length}}}(?!\S)" for length in ("512", "256", "128", "64", "32", "16", "8", "4", "1,2")
)
# Spaces are cut up, and a newline need not be looked for again in what is left of a run.
_JAIS2_UP_TO_LAST_NEWLINE = rf"(?<![\s&&[^\r\n]]){_UP_TO_LAST_NEWLINE}"
_JAIS2 = rf"(?:{_SUFFIX_ANY_CASE})|{_WORD}|\p{{N}}{{1,3}}|{_SYMBOLS}|{_JAIS2_UP_TO_LAST_NEWLINE}{_JAIS2_SPACES}|\s"
_BLOOM = " ?[^(\\s|.,!?…。，、।۔،)]+"
# Models whose digits count in threes from the right say so by looking ahead from each three to the last digit, which is
# work that grows with the square of the digits. Cutting off the one or two that are left over comes to the same (but
# for SuperBPE where a fraction or superscript stands between digits).
_AFMOE_LEFT_OVER = r"(?<!\p{N})\p{N}{1,2}(?=(?:\p{N}{3})++(?!\p{N}))"
_SUPERBPE_LEFT_OVER = r"(?<!\d)[\p{N}&&[^\d]]*\d{0,2}(?=(?:\d{3})++(?!\d))"
_TINY_AYA_NUMBER, _TINY_AYA_LEFT_OVER = r"(?<!\d)\d++\b", r"(?<!\d)\d{1,2}(?=(?:\d{3})++\b)"

# Cased letters, as in tokenizer.json of deepseek-ai/deepseek-llm-7b-base. Spelled by code points, since editors
# normalize some of these characters to others.
_DEEPSEEK_LLM_WORD = (
    "\\s?[A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    "\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d"
    "\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4"
    "\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"
    "\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d"
    "\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a"
    "\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2"
    "\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943]+"
)
_DEEPSEEK_LLM = (
    "[\r\n]",
    _DEEPSEEK_LLM_WORD,
    "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
    r"(?<!\s)\s++$",  # as \s+$, but tried once for each run of spaces
    _CJK_AND_HANGUL,
    r"\p{N}+",
)
_YOUTU = (
    "[\uac00-\ud7a3\u3131-\u318e]+|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f"
    "\ufe30-\ufe4f]+|[\u3105-\u312f]+|[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    rf"{_CASED_WORD_WITH_SUFFIX}|\p{{N}}|{_SYMBOLS_OR_SLASHES}|{_SPACES}",
)
_DEEPSEEK_CODER = ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK_AND_HANGUL, r"\p{N}")
_AFMOE_SCRIPTS = (
    "[\u4e00-\u9fff\u3400-\u4dbf\uf900-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf\u0e00-\u0e7f"
    "\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af\u1100-\u11ff]+"
)
_CHAMELEON = (
    "<sentinel:[0-9]+>",
    "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
    r"([\t\n]|    |  )",
    r"\p{N}",
    r"[\p{P}!-/:-@\[-`{-~]",
    _GPT2,
)


def _named(names: str, source: str, *patterns: str, **options: bool) -> dict[str, PreTokenizer]:
    rule = PreTokenizer(patterns=patterns, source=source, **options)
    return dict.fromkeys(names.split(), rule)


PRE_TOKENIZERS: Mapping[str, PreTokenizer] = MappingProxyType(
    _named("default", "DEFAULT", r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")
    | _named("gpt-2 phi-2 jina-es jina-de jina-v2-es jina-v2-de gigachat a.x-4.0 mellum exaone4", "GPT2", _GPT2)
    | _named("modern-bert jina-v1-en jina-v2-code roberta-bpe", "GPT2", _GPT2)
    | _named("mpt olmo jais trillion granite-docling", "MPT, OLMO, JAIS, TRILLION, GRANITE_DOCLING", _GPT2)
    | _named("starcoder refact command-r smollm", "STARCODER, REFACT, COMMAND_R, SMOLLM", r"\p{N}", _GPT2)
    | _named("codeshell exaone minerva-7b mellum2", "CODESHELL, EXAONE, MINERVA, MELLUM2", r"\p{N}", _GPT2)
    | _named("falcon", "FALCON", r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")
    | _named("llama3 llama-v3 llama-bpe falcon3 falcon-h1", "LLAMA3", _LLAMA3, ignore_merges=True, add_bos=True)
    | _named("pixtral midm-2.0 lfm2 jina-v5-nano", "LLAMA3", _LLAMA3, ignore_merges=True, add_bos=True)
    | _named("dbrx smaug-bpe chatglm-bpe", "DBRX, SMAUG, CHATGLM4", _LLAMA3)
    | _named("glm4 glm5", "CHATGLM4", _LLAMA3, ignore_merges=True)
    | _named("jais-2", "JAIS2", _JAIS2)
    | _named("qwen2 deepseek-r1-qwen kormo f2llmv2 megrez", "QWEN2", _QWEN2)
    | _named("stablelm2 hunyuan solar-open grok-2", "STABLELM2, HUNYUAN, SOLAR_OPEN, GROK_2", _QWEN2)
    | _named("qwen35", "QWEN35", _QWEN35)
    | _named("ufakzeka", "UFAKZEKA", _UFAKZEKA)
    | _named("laguna", "LAGUNA", r"[^\n]+|[\n]+", _QWEN2)
    | _named("minicpm5", "MINICPM5", r"\p{N}{1,3}", _MINICPM5, ignore_merges=True)
    | _named("deepseek-llm", "DEEPSEEK_LLM", *_DEEPSEEK_LLM)
    | _named("deepseek-coder", "DEEPSEEK_CODER", *_DEEPSEEK_CODER)
    | _named("deepseek-v3 hunyuan-dense", "DEEPSEEK3_LLM, HUNYUAN_DENSE", r"\p{N}{1,3}", _CJK, _DEEPSEEK3_WORDS)
    | _named("joyai-llm hy_v4", "JOYAI_LLM, HY_V4", r"\p{N}{1,3}", _CJK, _DEEPSEEK3_WORDS)
    | _named("spark2_5", "SPARK2_5", r"\p{N}{1,3}", _CJK, _SPARK_WORDS, r"\p{N}")
    | _named("afmoe", "AFMOE", _AFMOE_LEFT_OVER, r"\p{N}{1,3}", _AFMOE_SCRIPTS, _DEEPSEEK3_WORDS)
    | _named("youtu", "YOUTU", *_YOUTU, ignore_merges=True)
    | _named("bloom gpt3-finnish poro-chat", "BLOOM, GPT3_FINNISH, PORO", _BLOOM)
    | _named("viking", "VIKING", _BLOOM, r"\p{N}")
    | _named("tekken", "TEKKEN", _TEKKEN, ignore_merges=True, add_bos=True)
    | _named("gpt-4o llama4 kanana2 talkie minimax-m2", "GPT4O, MINIMAX_M2", _GPT4O)
    | _named("granite-embed-multi-97m", "GRANITE_EMB_MULTI", _GPT4O, ignore_merges=True)
    | _named("tiny_aya cohere2moe", "TINY_AYA", _TINY_AYA_NUMBER, _TINY_AYA_LEFT_OVER, _GPT4O)
    | _named("kimi-k2", "KIMI_K2", _KIMI)
    | _named("superbpe", "SUPERBPE", r"\p{N}+", _SUPERBPE_LEFT_OVER, r"\d{3}(?=\d{3})")
    | _named("bailingmoe bailingmoe2 llada-moe", "BAILINGMOE", _BAILING)
    | _named("seed-coder", "SEED_CODER", _SEED_CODER)
    | _named("exaone-moe", "EXAONE_MOE", _EXAONE_MOE)
    | _named("chameleon", "CHAMELEON", *_CHAMELEON, add_bos=True)
)

_GEMMA4 = CharacterRule(source="GEMMA4", has_newline_tokens=True, bos_always=True)

CHARACTER_RULES: Mapping[str, CharacterRule] = MappingProxyType(
    {
        "gemma4": _GEMMA4,
        "granite-embed-multi-311m": _GEMMA4,
        "sarvam-moe": CharacterRule(source="SARVAM_MOE"),
        "whitespace": CharacterRule(source="WHITESPACE", drops_white_space=True),
    }
)
