"""One picture from the command line is measured as a run's are."""

from __future__ import annotations

import pytest
from PIL import Image

from vtc.errors import DataError
from vtc.eval.studies import show


@pytest.mark.parametrize(("size", "question", "words"), [((1, 65535), "what ?", "thin"), ((9, 9), "\ud800", "half")])
def test_what_cannot_be_asked_is_refused(size, question, words, vlm, tmp_path, monkeypatch):
    monkeypatch.setattr(show, "load", lambda *args, **options: vlm)
    Image.new("RGB", size).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=words):
        show.run("m", tmp_path / "a.png", question, "random", "0.5", tmp_path / "o.png", "auto", "cpu", "auto")
    assert not (tmp_path / "o.png").exists()
