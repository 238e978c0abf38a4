r"""Texts as tokens that do not depend on case, punctuation, white space or the spelling of LaTeX.

A token is a word or a number with the operators before it: ``$x^{2} - 3 \cdot x = \tfrac{1}{2}$`` and
``x^2-3*x=1/2`` are both ``x ^2 -3 *x =1 2``. Delimiters, fractions, fonts and spaces of LaTeX are no tokens; other
commands are words without their backslash. Single number words, such as "three" and "million", are numbers. Scripts
without spaces between words (Chinese, Japanese, Thai and others) have one token per character. Digits are equal in all
scripts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import polars as pl
import xxhash
from numpy.typing import NDArray

from rlt_data.signals.words import UNSPACED

#: Flags in the lowest bits of a code: the token decides what is asked (a number, or a word such as "half" or "odd"); it
#: belongs to a formula (a variable, or a token with an operator).
DECISIVE, FORMULA = 1, 2

_GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma tau upsilon phi chi "
    "psi omega"
).split()
_GREEK_LETTERS = dict(zip("αβγδεζηθικλμνξοπρστυφχψω", _GREEK, strict=True)) | {"ς": "sigma"}
_OPERATORS = {
    "*": ("\\cdot", "\\times", "\\ast", "&times;", "×", "·", "⋅", "∗", "∙"),
    "-": ("−", "–", "‐", "‑", "\\minus", "&minus;"),
    "≤": ("\\leqslant", "\\leqq", "\\leq", "\\le", "&le;", "<=", "≦", "⩽"),
    "≥": ("\\geqslant", "\\geqq", "\\geq", "\\ge", "&ge;", ">=", "≧", "⩾"),
    "≠": ("\\neq", "\\ne", "!="),
    "±": ("\\pm",),
    "<": ("\\lt", "&lt;"),
    ">": ("\\gt", "&gt;"),
}
_WORDS = {
    "sqrt": ("√",),
    "degrees": ("^{\\circ}", "^\\circ", "^{∘}", "^∘", "°", "\\degree", "\\degrees"),
    "infty": ("∞",),
    "sum": ("∑",),
    "prod": ("∏",),
    "int": ("∫",),
    "partial": ("∂",),
    "percent": ("%",),
    "equiv": ("≡",),
    "approx": ("≈",),
    "cong": ("≅",),
    "sim": ("∼",),
    "perp": ("⊥",),
    "parallel": ("∥",),
    "circ": ("∘",),
    "in": ("∈",),
    "notin": ("∉",),
    "subset": ("⊂",),
    "subseteq": ("⊆",),
    "cap": ("∩",),
    "cup": ("∪",),
    "angle": ("∠",),
    "triangle": ("△",),
    "prime": ("′", "'(", "’(", "^{\\prime}", "^\\prime"),
    "prime prime": ("''(", "’’(", "^{\\prime\\prime}"),
    "binom": ("\\dbinom", "\\tbinom"),
    "mod": ("\\bmod", "\\pmod"),
    "ell": ("ℓ",),
    "emptyset": ("\\varnothing", "∅"),
    "epsilon": ("\\varepsilon",),
    "phi": ("\\varphi",),
}
_DROPPED = (
    "\\left \\right \\middle \\bigl \\bigr \\biggl \\biggr \\bigg \\big \\frac \\dfrac \\tfrac \\cfrac \\over "
    "\\div ÷ \\text \\textbf \\textit \\textrm \\textnormal \\mathrm \\mathbf \\mathit \\mathsf \\mathbb \\mathcal "
    "\\operatorname \\mbox \\hbox \\emph \\boldsymbol \\bm \\rm \\bf \\displaystyle \\textstyle \\limits "
    "\\nolimits \\qquad \\quad \\space &nbsp; \\ldots \\cdots \\dots \\colon \\lvert \\rvert "
    "\\vert \\mid \\lfloor \\rfloor \\lceil \\rceil \\{ \\} \\[ \\] \\( \\) \\\\ \\, \\; \\: ~ — --- -- ** "
    "\\rightarrow \\to → -> ... … | _ ⌊ ⌋ ⌈ ⌉ ⟨ ⟩ ‖"
).split()
_EMPTY = ("\\!", "'", "’", "‘", "`", "\u200b", "\u200c", "\u200d", "\u200e", "\u200f", "\u2060", "\ufeff", "\u00ad")

#: Ends each command of LaTeX, so that \\le does not fit in \\left.
_END = "\x00"


def _spellings() -> dict[str, str]:
    """Return spellings and what they become, the longest first, because the first match counts."""
    meanings = {
        **{spelling: symbol for symbol, spellings in _OPERATORS.items() for spelling in spellings},
        **{spelling: f" {word} " for word, spellings in _WORDS.items() for spelling in spellings},
        **{letter: f" {name} " for letter, name in _GREEK_LETTERS.items()},
        **dict.fromkeys(_DROPPED, " "),
        **dict.fromkeys(_EMPTY, ""),
        **dict.fromkeys(("{,}", ",\\!", ", \\!"), ","),
        "\\": " ",
    }
    ended = {re.sub(r"(\\[a-z]+)", rf"\1{_END}", spelling): meaning for spelling, meaning in meanings.items()}
    return dict(sorted(ended.items(), key=lambda item: -len(item[0])))


_SPELLINGS = _spellings()
_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n", strict=True))
#: Replaced before Unicode normalization (NFKC), which keeps digits of other scripts, joins fractions to the number
#: before them and lowers superscripts.
_CHARACTERS = {
    **_SUPERSCRIPTS,
    **{chr(ord(zero) + digit): str(digit) for zero in "٠۰०০੦૦୦௦౦೦൦๐໐༠၀០" for digit in range(10)},
    **{fraction: f" {fraction}" for fraction in "¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"},
    "´": "'",
}
#: Tags, and commands of LaTeX whose arguments are not part of the text.
_LAYOUT = (
    r"</?(?:[a-z]{3,}|br|em|h[1-6]|li|p|td|tr|ul|ol)(?: ?/)?>|"
    r"\\(?:begin\s*\{\s*(?:array|tabular)\s*\}\s*\{[^{}]*\}"
    r"|(?:begin|end|[hv]space|(?:text)?color|label|tag)\*?\s*\{[^{}]*\})"
)

_SYMBOLS = r"+\-*=<>^≤≥≠±"
#: Three more digits behind a separator of thousands.
_GROUP = "(?:,([0-9]{3}))?"
_TOKEN = rf"[{_SYMBOLS}]*(?:(?:[0-9]*\.)?[0-9]+|[{UNSPACED}]|[\p{{L}}\p{{M}}\p{{N}}--0-9{UNSPACED}]+)"

_UNITS = "zero two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
_NUMBERS = {word: str(number + (number > 0)) for number, word in enumerate(_UNITS.split())} | {
    **{"eighteen": "18", "nineteen": "19", "twenty": "20", "thirty": "30", "forty": "40", "fifty": "50"},
    **{"sixty": "60", "seventy": "70", "eighty": "80", "ninety": "90", "hundred": "100", "thousand": "1000"},
    "million": "1000000",
}
_DECISIVE = (
    "half halves third thirds quarter quarters twice thrice double triple dozen maximum minimum largest smallest "
    "greatest least more less fewer even odd increasing decreasing increased decreased positive negative sum product "
    "difference average mean median percent area perimeter circumference volume radius diameter derivative integral "
    "sin cos tan log ln 二 两 三 四 五 六 七 八 九 十 百 千 万 半 倍"
).split()


@dataclass(frozen=True)
class Tokens:
    """The tokens of several texts as codes, concatenated.

    Attributes:
        codes: uint64 per token, of all texts; equal tokens have equal codes. Two low bits are flags.
        offsets: int64, one more than texts; the tokens of text i are ``codes[offsets[i]:offsets[i + 1]]``.
    """

    codes: NDArray[np.uint64]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """The number of tokens of each text."""
        return np.diff(self.offsets)

    @property
    def texts(self) -> NDArray[np.int64]:
        """The text of each token."""
        return np.repeat(np.arange(len(self)), self.lengths)

    @property
    def short_codes(self) -> NDArray[np.uint32]:
        """The upper half of each code, with the flags."""
        flags = np.uint64(DECISIVE | FORMULA)
        return (((self.codes >> np.uint64(32)) & ~flags) | (self.codes & flags)).astype(np.uint32)

    def split(self) -> list[NDArray[np.uint32]]:
        """Return the short codes of each text."""
        return np.split(self.short_codes, self.offsets[1:])[:-1]

    def take(self, chosen: NDArray[np.int64]) -> Tokens:
        """Return the tokens of some texts."""
        lengths = self.lengths[chosen]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        positions = np.arange(offsets[-1]) + np.repeat(self.offsets[chosen] - offsets[:-1], lengths)
        return Tokens(self.codes[positions], offsets)


def tokens(texts: pl.Series) -> Tokens:
    """Return the tokens of texts; null has none."""
    split = words(texts)
    offsets = np.concatenate([[0], np.cumsum(split.list.len().fill_null(0).to_numpy().astype(np.int64))])
    flat = split.explode().drop_nulls().cast(pl.Categorical(pl.Categories.random()))
    if flat.is_empty():
        return Tokens(np.zeros(0, np.uint64), offsets)
    vocabulary = flat.unique()
    numbers = vocabulary.to_physical().to_numpy()
    codes = np.zeros(numbers.max() + 1, np.uint64)
    codes[numbers] = _codes(vocabulary.cast(pl.String))
    return Tokens(codes[flat.to_physical().to_numpy()], offsets)


def words(texts: pl.Series) -> pl.Series:
    """Return the tokens of texts as lists of strings."""
    return plain(texts).str.extract_all(_TOKEN)


def plain(texts: pl.Series) -> pl.Series:
    """Return texts in lower case, with one spelling of LaTeX commands, Unicode symbols and numbers."""
    other = (texts.str.len_bytes() != texts.str.len_chars()).fill_null(False)
    if other.any():
        raised = texts.filter(other).str.replace_all(rf"([{''.join(_SUPERSCRIPTS)}]+)", "^$1")
        lowered = raised.str.replace_all("([₀-₎ₐ-ₜ]+)", " $1 ")
        composed = lowered.str.replace_many(_CHARACTERS).str.normalize("NFKC")
        texts = texts.clone().scatter(other.arg_true(), composed)
    quoted = texts.str.contains(r"(?:\A|\n[ \t]*\n)[ \t]*> ").fill_null(False)
    if quoted.any():
        texts = texts.zip_with(~quoted, texts.str.replace_all(r"(?m)^[ \t]*>+(?: |\r?$)", ""))
    return (
        texts.str.to_lowercase()
        .str.replace_all(r"\\{2,}", "\\")
        .str.replace_all(r"\\[dtc]?frac(?:\s*([0-9])|\s+([a-z]))\s*([0-9a-z])", " $1$2 $3 ")
        .str.replace_all(r"log\}?\s*_([0-9])([0-9])", "log $1 $2")
        .str.replace_all(r"\\,([0-9]{3})\b", ",$1")
        .str.replace_all(r"([\p{L}\p{N})}\]])\*\*([0-9{])", "$1^$2")
        .str.replace_all("<sup>", "^", literal=True)
        .str.replace_all(_LAYOUT, " ")
        .str.replace_all(r"(\\[a-z]+)", f"${{1}}{_END}")
        .str.replace_many(_SPELLINGS, leftmost=True)
        .str.replace_all(rf"(^|[^0-9,.(\[{{])([1-9][0-9]{{0,2}}),([0-9]{{3}}){_GROUP * 3}\b", "$1$2$3$4$5$6")
        .str.replace_all(rf"([{_SYMBOLS}])[\s{{}}(\[$]+", "$1")
        .str.replace_all(r"[-*]+(\p{L}{2})", " $1")
    )


def _codes(vocabulary: pl.Series) -> NDArray[np.uint64]:
    """Return the code of each token of a vocabulary."""
    frame = vocabulary.to_frame("token").with_columns(
        bare=pl.col("token").str.replace(rf"^[{_SYMBOLS}]+", "").replace(_NUMBERS).str.replace(r"^\.", "0."),
        symbols=pl.col("token").str.extract(rf"^([{_SYMBOLS}]+)").fill_null(""),
    )
    bare = frame["bare"]
    number = bare.str.contains("^[0-9]")
    decisive = number | bare.is_in(_DECISIVE)
    # "x = 5" and "x is 5" have the same number.
    symbols = frame["symbols"].str.strip_chars_start("=").zip_with(number, frame["symbols"])
    variable = (bare.str.len_chars() == 1) & ~bare.is_in(["a", "i"]) & bare.str.contains("^[a-z]")
    formula = variable | (symbols != "")
    spelled = symbols + bare
    hashes = np.fromiter(map(xxhash.xxh3_64_intdigest, spelled.cast(pl.Binary)), np.uint64, len(spelled))
    flags = DECISIVE * decisive.to_numpy().astype(np.uint64) + FORMULA * formula.to_numpy().astype(np.uint64)
    return (hashes & ~np.uint64(3)) | flags
