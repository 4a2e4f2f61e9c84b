from __future__ import annotations

import pytest

from tacit.core.rollouts import Prompt
from tacit.rewards.instruction_checks import CHECKS, compare, count_sentences
from tacit.rewards.instructions import Instructions, follows, score
from tacit.rewards.scripts import OWN, SCRIPTS, Unscorable, language

KEYWORDS, LENGTH, FORMAT, CONTENT = "keywords:", "length_constraints:", "detectable_format:", "detectable_content:"
CASES = [
    ("change_case:capital_word_frequency", {"capital_relation": "at least", "capital_frequency": 2}, ["NASA and ESA"], ["NASA and Esa", "nasa"]),
    ("change_case:capital_word_frequency", {"capital_relation": "less than", "capital_frequency": 2}, ["NASA and Esa", "x"], ["NASA and ESA"]),
    ("change_case:english_capital", {}, ["ALL, 2 OF THEM!"], ["ALL, 2 of THEM", "12"]),
    ("change_case:english_lowercase", {}, ["all, 2 of them!"], ["All", "12"]),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it. "}, ["Say it. Yes.", "\nsay it."], ["Yes. Say it.", "Say"]),
    ("combination:two_responses", {}, ["a\n******\nb", "******a******b"], ["a", "a******a", "a******b******c", "a******", "a****** ******b"]),
    (CONTENT + "number_placeholders", {"num_placeholders": 2}, ["[name] [address]", "[a][b][c]"], ["[name]", "[[]]", "[] []"]),
    (CONTENT + "postscript", {"postscript_marker": "P.S."}, ["x\nP.S. y", "x\n p. s. y", "**P.S.** y"], ["x P.S. y", "x\nP.P.S. y", "x"]),
    (CONTENT + "postscript", {"postscript_marker": "P.P.S"}, ["x\nP.P.S y", "x\nP.P.S. y"], ["x\nP.S. y"]),
    (FORMAT + "constrained_response", {}, ["My answer is no.", "Well: My answer is maybe."], ["My answer is perhaps.", "no"]),
    (FORMAT + "json_format", {}, ['{"a": [1]}', "```json\n[1]\n```", "```\n1\n```", "9" * 10**5], ["{a: 1}", "x ```[1]```", "[" * 10**5, "``` ```"]),
    (FORMAT + "multiple_sections", {"section_spliter": "Section", "num_sections": 2}, ["Section 1\nSection 2"], ["Section 1", "Section a Section b"]),
    (FORMAT + "number_bullet_lists", {"num_bullets": 2}, ["* a\n* b", "- a\n  - b\nc"], ["* a", "* a\n* b\n* c", "** a\n** b"]),
    (FORMAT + "number_highlighted_sections", {"num_highlights": 2}, ["*a* and **b**", "*a* *b* *c*"], ["*a*", "* *a* b", "*a\nb* *c*"]),
    (FORMAT + "title", {}, ["<<a title>>\nx"], ["<a>", "<< >>", "<<\n>>"]),
    (KEYWORDS + "existence", {"keywords": ["Cat", "dog"]}, ["DOG and cats"], ["cat"]),
    (KEYWORDS + "forbidden_words", {"forbidden_words": ["cat", "c++"]}, ["category"], ["a Cat."]),
    (KEYWORDS + "frequency", {"keyword": "cat", "frequency": 2, "relation": "at least"}, ["Cat cat"], ["cat"]),
    (KEYWORDS + "letter_frequency", {"letter": "A", "let_frequency": 3, "let_relation": "less than"}, ["banal"], ["banana"]),
    ("language:response_language", {"language": "ko"}, ["안녕하세요 OK"], ["hello", "привет", "12"]),
    (LENGTH + "nth_paragraph_first_word", {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "elm"}, ["a\n\nElm, b", "a\n\n\n\n\"elm\" c"],
     ["a\n\nelms", "elm", "elm\n\na", "a\n\nelm\n\nb"]),
    (LENGTH + "number_paragraphs", {"num_paragraphs": 2}, ["a\n***\nb", "***\na\n\n***\n\nb\n***", "a *** b"],
     ["a\n\nb", "a\n***\n***\nb", "a\n***\nb\n***\nc"]),
    (LENGTH + "number_sentences", {"num_sentences": 2, "relation": "at least"}, ["One. Two!", "One\n\nTwo"], ["One", "Mr. One."]),
    (LENGTH + "number_words", {"num_words": 3, "relation": "less than"}, ["one, two", "one - two"], ["one two three"]),
    ("punctuation:no_comma", {}, ["a; b"], ["a, b"]),
    ("startend:end_checker", {"end_phrase": "Any questions?"}, ["x any questions?", '"x. Any questions?" '], ["Any questions? No."]),
    ("startend:quotation", {}, ['"a"', ' "a b" '], ['"a', '"', "'a'"]),
]  # fmt: skip


@pytest.mark.parametrize(("instruction", "arguments", "followed", "not_followed"), CASES)
def test_instructions(instruction, arguments, followed, not_followed):
    assert [follows(text, instruction, **arguments) for text in followed] == [True] * len(followed)
    assert [follows(text, instruction, **arguments) for text in [*not_followed, "", " \n"]] == [False] * (len(not_followed) + 2)


def test_every_check_has_a_case():
    assert {case[0] for case in CASES} == set(CHECKS)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("One. Two! Three? Four", 4),
        ("Mr. Smith met J. Doe.", 1),
        ('He said "stop." Then left.', 2),
        ("Pi is 3.14 now.", 1),
        ("Title\n\nOne.\n\n...", 2),
        ("So do I. You too.", 2),
        ("", 0),
    ],
)
def test_sentences(text, count):
    assert count_sentences(text) == count


def test_languages_are_told_by_script_or_not_at_all():
    assert language("ありがとう、東京", "ja") and not language("谢谢你们", "ja")
    assert not language("hello there", "hi") and not language("привет", "it")
    with pytest.raises(Unscorable, match="takes a model to tell"):
        language("hello there", "it")
    with pytest.raises(Unscorable, match="takes a model to tell"):
        language("नमस्ते", "hi")
    with pytest.raises(Unscorable, match="'xx' is not among those"):
        language("hello", "xx")
    assert set(SCRIPTS) >= OWN
    shared = [s for name in SCRIPTS.keys() - OWN for s in SCRIPTS[name]]
    assert not {s for name in OWN - {"ja"} for s in SCRIPTS[name]} & set(shared)


def test_the_score_wants_all_and_logs_the_share():
    comma, title = {"id": "punctuation:no_comma", "arguments": {}}, {"id": "detectable_format:title", "arguments": {}}
    italian = {"id": "language:response_language", "arguments": {"language": "it"}}
    assert score("?", "<<a>> b", [comma, title]) == {"reward": 1, "followed": 1}
    assert score("?", "<<a>>, b", [comma, title]) == {"reward": 0, "followed": 0.5}
    assert score("?", "ciao, tu", [comma, italian]) == {"reward": 0}
    with pytest.raises(Unscorable):
        score("?", "ciao", [comma, italian])


def test_mistakes_leave_a_completion_unscored_with_their_reason():
    prompts = [Prompt("1", "?", None, {"instructions": [{"id": name, "arguments": {}}]}) for name in ("none", "punctuation:no_comma")]
    unknown, followed = Instructions()(prompts, ["x", "x"])
    assert unknown.value is None and "unknown instruction 'none'" in unknown.failure
    assert followed.value == 1 and followed.parts == {"followed": 1}
    with pytest.raises(ValueError, match="'at least' or 'less than', not with 'over'"):
        compare(1, "over", 2)
