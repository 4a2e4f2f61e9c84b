"""Checks of instructions that a program can verify, one pure function each: (completion, arguments by name) -> followed or not.

Source: Zhou et al. 2023, "Instruction-Following Evaluation for Large Language Models", table 1 for the instructions and section 2 for their
meaning; names and arguments are those of the published data. Departures: sentences are told apart by their punctuation, not by a trained
tokenizer; that text is English is taken for granted where only its case is asked for; and see `language` for languages. All take time linear
in the completion.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence

from tacit.rewards.scripts import language

WORD = re.compile(r"\w+")
HIGHLIGHT = re.compile(r"\*\*[^*\n]+\*\*|\*[^*\n]+\*")
PLACEHOLDER = re.compile(r"\[[^\[\]]+\]")
BULLET = re.compile(r"^[ \t]{0,16}(?:\*(?!\*)|-(?!-)|•)", re.MULTILINE)
TITLE = re.compile(r"<<[^<>\n]*\S[^<>\n]*>>")
DIVIDER = re.compile(r"^[ \t]*\*{3}[ \t]*$|\s\*{3}\s", re.MULTILINE)
CONSTRAINED = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
ABBREVIATIONS = frozenset(["mr", "mrs", "ms", "dr", "prof", "st", "jr", "sr", "vs", "etc", "e.g", "i.e", "fig", "no", "inc", "ltd", "co"])
CLOSING = "\"'”’)]*_"


def compare(count: int, relation: str, bound: int) -> bool:
    """ "at least" or "less than", the two relations of the data. Raises ValueError for another one."""
    if relation not in ("at least", "less than"):
        raise ValueError(f"an instruction compares with 'at least' or 'less than', not with {relation!r}")
    return count >= bound if relation == "at least" else count < bound


def number_words(text: str, relation: str, num_words: int) -> bool:
    return compare(sum(1 for _ in WORD.finditer(text)), relation, num_words)


def number_sentences(text: str, relation: str, num_sentences: int) -> bool:
    return compare(count_sentences(text), relation, num_sentences)


def count_sentences(text: str) -> int:
    """Runs of words that end with . ! or ? (not as in "Mr." or "J."), and the rest of a paragraph after the last of them."""
    count = 0
    for paragraph in re.split(r"\n\s*\n", text):
        open_ = False
        for word in paragraph.split():
            bare = word.rstrip(CLOSING)
            open_ = open_ or any(c.isalnum() for c in bare)
            short = bare.rstrip(".").lstrip("\"'“(")
            if (
                open_
                and bare.endswith((".", "!", "?", "…", "。"))
                and not (bare.endswith(".") and (short.lower() in ABBREVIATIONS or _initial(short)))
            ):
                count, open_ = count + 1, False
        count += open_
    return count


def _initial(word: str) -> bool:
    return len(word) == 1 and word.isupper() and word != "I"


def number_paragraphs(text: str, num_paragraphs: int) -> bool:
    """Paragraphs set apart by the divider ***; one may be empty at the ends, none in the middle."""
    parts = [part.strip() for part in DIVIDER.split(text)]
    return all(parts[1:-1]) and sum(map(bool, parts)) == num_paragraphs


def nth_paragraph_first_word(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Paragraphs set apart by blank lines."""
    paragraphs = [part.strip() for part in text.split("\n\n") if part.strip()]
    if len(paragraphs) != num_paragraphs or not 1 <= nth_paragraph <= num_paragraphs:
        return False
    return paragraphs[nth_paragraph - 1].split(maxsplit=1)[0].strip("\"'“‘(*_").rstrip(".,!?:;\"'”’)*_").lower() == first_word.lower()


def number_placeholders(text: str, num_placeholders: int) -> bool:
    return sum(1 for _ in PLACEHOLDER.finditer(text)) >= num_placeholders


def postscript(text: str, postscript_marker: str) -> bool:
    """A line that begins with the marker, however its letters are cased and spaced."""
    marker = "".join(postscript_marker.split()).lower().rstrip(".")
    return any("".join(line[:200].split()).lstrip("*_#").lower().startswith(marker) for line in text.splitlines())


def number_bullet_lists(text: str, num_bullets: int) -> bool:
    return sum(1 for _ in BULLET.finditer(text)) == num_bullets


def constrained_response(text: str) -> bool:
    return any(answer in text for answer in CONSTRAINED)


def number_highlighted_sections(text: str, num_highlights: int) -> bool:
    return sum(1 for match in HIGHLIGHT.finditer(text) if match[0].strip("*").strip()) >= num_highlights


def multiple_sections(text: str, section_spliter: str, num_sections: int) -> bool:
    """Sections whose headings are the word and a number: "Section 1"."""
    return len(re.findall(rf"\b{re.escape(section_spliter.strip())}\s{{0,4}}\d+", text)) >= num_sections


def json_format(text: str) -> bool:
    """The whole is JSON, perhaps in a code block."""
    text = text.strip()
    if text.startswith("```") and text.endswith("```"):
        text = text[3:-3].lstrip().removeprefix("json").removeprefix("JSON")
    try:
        json.loads(text, parse_int=str)  # integers of any length
    except (ValueError, RecursionError):
        return False
    return True


def title(text: str) -> bool:
    return TITLE.search(text) is not None


def two_responses(text: str) -> bool:
    """Two that differ, set apart by six asterisks."""
    parts = [part.strip() for part in text.split("******")]
    inner = [part for part in parts if part]
    return all(parts[1:-1]) and len(inner) == 2 and inner[0] != inner[1]


def repeat_prompt(text: str, prompt_to_repeat: str) -> bool:
    """The completion begins with the request, word for word, case aside."""
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def end_checker(text: str, end_phrase: str) -> bool:
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def quotation(text: str) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def no_comma(text: str) -> bool:
    return "," not in text


def english_capital(text: str) -> bool:
    return text.isupper()


def english_lowercase(text: str) -> bool:
    return text.islower()


def capital_word_frequency(text: str, capital_relation: str, capital_frequency: int) -> bool:
    """Words of which all letters are capitals; one letter is a word, too."""
    return compare(sum(word.isupper() for word in WORD.findall(text)), capital_relation, capital_frequency)


def existence(text: str, keywords: Sequence[str]) -> bool:
    text = text.lower()
    return all(keyword.lower() in text for keyword in keywords)


def forbidden_words(text: str, forbidden_words: Sequence[str]) -> bool:
    """None of them occurs as a word of its own."""
    text = text.lower()
    return not any(re.search(rf"\b{re.escape(word.lower())}\b", text) for word in forbidden_words)


def frequency(text: str, keyword: str, frequency: int, relation: str) -> bool:
    return compare(text.lower().count(keyword.lower()), relation, frequency)


def letter_frequency(text: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return compare(text.lower().count(letter.lower()), let_relation, let_frequency)


CHECKS: dict[str, Callable[..., bool]] = {
    "change_case:capital_word_frequency": capital_word_frequency,
    "change_case:english_capital": english_capital,
    "change_case:english_lowercase": english_lowercase,
    "combination:repeat_prompt": repeat_prompt,
    "combination:two_responses": two_responses,
    "detectable_content:number_placeholders": number_placeholders,
    "detectable_content:postscript": postscript,
    "detectable_format:constrained_response": constrained_response,
    "detectable_format:json_format": json_format,
    "detectable_format:multiple_sections": multiple_sections,
    "detectable_format:number_bullet_lists": number_bullet_lists,
    "detectable_format:number_highlighted_sections": number_highlighted_sections,
    "detectable_format:title": title,
    "keywords:existence": existence,
    "keywords:forbidden_words": forbidden_words,
    "keywords:frequency": frequency,
    "keywords:letter_frequency": letter_frequency,
    "language:response_language": language,
    "length_constraints:nth_paragraph_first_word": nth_paragraph_first_word,
    "length_constraints:number_paragraphs": number_paragraphs,
    "length_constraints:number_sentences": number_sentences,
    "length_constraints:number_words": number_words,
    "punctuation:no_comma": no_comma,
    "startend:end_checker": end_checker,
    "startend:quotation": quotation,
}
