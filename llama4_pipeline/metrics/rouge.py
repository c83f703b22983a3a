"""Words of any script for ROUGE, whose scorer knows a to z and digits: everything else would score 0."""

import unicodedata

import regex  # whose words have vowel signs and joiners in them, as those of `re` have not
from rouge_score.tokenizers import DefaultTokenizer, Tokenizer

# Scripts without blanks between words (kana, Chinese characters, Thai to Khmer) count by character.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = regex.compile(rf"(?=\w)[{_UNSPACED}]|[^\W_{_UNSPACED}]+")


def word_spans(text: str) -> list[tuple[int, int]]:
    """Where each word of a text begins and ends; a character of a script without blanks is one."""
    return [match.span() for match in _WORD.finditer(text)]


class WordsOfAnyScript(Tokenizer):
    """What the scorer takes for words, stemmed as it does, and words of letters that it leaves out, as they are."""

    def __init__(self) -> None:
        self._of_ascii = DefaultTokenizer(use_stemmer=True)

    def tokenize(self, text: str) -> list[str]:
        """The words of a text in their order, in lower case, however Unicode composes their characters."""
        words: list[str] = []
        for word in _WORD.findall(unicodedata.normalize("NFKC", text).lower()):
            words += self._of_ascii.tokenize(word) if word.isascii() else [word]
        return words
