"""Replies to questions with options, and the option each means: (reply, options, letter or None), a line each."""

from __future__ import annotations

PETS = {"A": "cat", "B": "dog", "C": "caterpillar", "D": "bird"}
NUMBERS = {"A": "1", "B": "10", "C": "11", "D": "12"}
GAP = {"B": "red", "D": "dark red", "F": "blue"}
MANY = {letter: f"text {letter}" for letter in "ABCDEFGHIJ"}

REPLIES = [
    # a capital letter that stands alone, as VLMEvalKit reads it
    ("D", PETS, "D"),
    ("(D)", PETS, "D"),
    ("D.", PETS, "D"),
    ("**D**", PETS, "D"),
    ("'D'", PETS, "D"),
    ("（Ｄ）", PETS, "D"),
    ("The answer is D", PETS, "D"),
    ("D. bird", PETS, "D"),
    ("选D", PETS, "D"),
    ("答案是D。", PETS, "D"),
    ("A", PETS, "A"),
    ("A bird can be seen", PETS, "D"),
    ("B or C", PETS, None),
    ("E", PETS, None),
    ("E", MANY, "E"),
    ("J.", MANY, "J"),
    ("I", MANY, "I"),
    ("I think C", MANY, "C"),
    ("F", GAP, "F"),
    ("A", GAP, None),
    ("C", GAP, None),
    # a small letter
    ("d", PETS, "D"),
    ("d)", PETS, "D"),
    ("(d) bird", PETS, "D"),
    ("a", PETS, "A"),
    ("a dog", PETS, "B"),
    ("The answer is d", PETS, "D"),
    ("the answer is (d).", PETS, "D"),
    ("Answer: d", PETS, "D"),
    ("option d", PETS, "D"),
    ("the answer is a dog", PETS, "B"),
    # several letters
    ("D, not A", PETS, "D"),
    ("D. A is wrong", PETS, "D"),
    ("The answer is D because A is too small", PETS, "D"),
    ("(C) is incorrect; the answer is (A)", PETS, "A"),
    ("I choose B over A", PETS, "B"),
    # an option's text
    ("bird", PETS, "D"),
    ("A cat!", {"A": "dog", "C": "cat"}, "A"),  # two words with one letter: VLMEvalKit's rule comes first
    ("It is a cat.", PETS, "A"),
    ("caterpillar", PETS, "C"),
    ("two birds", PETS, "D"),
    ("a cat and a dog", PETS, None),
    ("10", NUMBERS, "B"),
    ("it is 10", NUMBERS, "B"),
    ("1", NUMBERS, "A"),
    ("12.0", NUMBERS, "D"),
    ("110", NUMBERS, None),
    ("dark red", GAP, "D"),
    ("It is red.", GAP, "B"),
    ("BLUE", GAP, "F"),
    # nothing
    ("", PETS, None),
    ("Cannot tell", PETS, None),
    ("A+", PETS, None),
    ("D'accord", PETS, None),
    ("B-52", PETS, None),
]
