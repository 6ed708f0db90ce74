"""Measures of a text: its words, those that carry meaning, how much it repeats itself."""

from __future__ import annotations

import regex

# scripts without blanks between words: a character counts as one
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_LETTERS = rf"(?:[\p{{L}}--[{_UNSPACED}]]\p{{M}}*)+"
_ALONE = regex.compile(rf"(?V1)[[{_UNSPACED}]&&\p{{L}}]\p{{M}}*")
_WORD = regex.compile(rf"{_ALONE.pattern}|{_LETTERS}(?:['’]{_LETTERS})?|\d+(?:[.,]\d+)*")
_STOP_WORDS = frozenset(
    """
    a about after all also an and any are as at be because been but by can could did do does
    for from give had has have he her his how i if in into is it its just like make me more
    most my no not of on one or our out please she should so some such tell than that the
    their them then there these they this to up us use was we were what when where which who
    why will with would write you your
    """.split()  # noqa: SIM905
)


def words(text: str) -> list[str]:
    """Lower-case words and numbers."""
    return [word.lower() for word in _WORD.findall(text)]


def content_words(text: str) -> set[str]:
    """Distinct words that carry meaning, cut to a common stem of at most six letters."""
    meant = (w for w in words(text) if len(w) > 1 or _ALONE.fullmatch(w))
    return {word[:6] for word in meant if word not in _STOP_WORDS}


def repetition(text: str) -> float:
    """Share of word trigrams that occurred before, in [0, 1]."""
    tokens = words(text)
    trigrams = list(zip(tokens, tokens[1:], tokens[2:], strict=False))
    return 1 - len(set(trigrams)) / len(trigrams) if trigrams else 0.0
