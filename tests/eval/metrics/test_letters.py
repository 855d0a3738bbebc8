"""Letters read from replies to one's own tables."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.eval.metrics.letters import REPLIES
from vtc.eval.metrics.letters import told_letter


@pytest.mark.parametrize(("reply", "options", "letter"), REPLIES)
def test_replies(reply, options, letter):
    assert told_letter(reply, options) == letter


@given(st.text(), st.dictionaries(st.sampled_from(string.ascii_uppercase), st.text(min_size=1)))
def test_only_an_option_that_is_there_is_read(reply, options):
    assert told_letter(reply, options) in {None, *options}


@pytest.mark.parametrize("letter", string.ascii_uppercase)
@pytest.mark.parametrize("form", ["{}", "({})", "{}.", "{})", "The answer is {}.", "**{}**"])
def test_every_letter_in_either_case(form, letter):
    options = {each: f"text {n}" for n, each in enumerate(string.ascii_uppercase)}
    assert told_letter(form.format(letter), options) == told_letter(form.format(letter.lower()), options)
    assert told_letter(form.format(letter.lower()), options) == letter
