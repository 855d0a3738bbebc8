"""Every word of the questions and answers: the tokenizer's whole vocabulary."""

from vtc.eval.scenes.glyphs import COLORS, DIGITS, SHAPES, WORDS

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>", "USER:", "ASSISTANT:")
FRAME = tuple("is there a ? what color the shape how many digits digit word written or of".split())
PLACES = ("above", "below", "left", "right")
VOCABULARY = (*SPECIAL, *FRAME, *PLACES, "yes", "no", *COLORS, *SHAPES, *SHAPES.values(), *DIGITS, *WORDS)
IDS = {word: index for index, word in enumerate(VOCABULARY)}
PAD, BOS, EOS, UNKNOWN, IMAGE = range(5)


def encode(text: str) -> list[int]:
    """Token ids of a text whose words are all in the vocabulary."""
    return [IDS[word] for word in text.split()]
