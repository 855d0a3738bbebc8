"""What can be drawn: colours, shape masks and a 5x7 bitmap font; data and pure functions of it."""

import numpy as np

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (225, 45, 45),
    "green": (40, 190, 60),
    "blue": (50, 80, 235),
    "yellow": (240, 220, 50),
    "purple": (165, 60, 200),
    "cyan": (60, 215, 225),
    "orange": (245, 140, 30),
    "white": (245, 245, 245),
}
SHAPES: dict[str, str] = {
    "circle": "circles",
    "square": "squares",
    "triangle": "triangles",
    "cross": "crosses",
    "ring": "rings",
    "diamond": "diamonds",
}
"""Shape names and their plurals."""
WORDS = ("cat", "dog", "bus", "sun", "key", "cup", "hat", "pen", "map", "box")
DIGITS = tuple("0123456789")
SHAPE_SIZES = range(9, 15)
"""Widths of a shape, in pixels."""
DIGIT_SIZE = (9, 7)
"""Height and width of a digit, in pixels."""

# A glyph is seven rows of five pixels; each row is one byte in hexadecimal.
_FONT = {
    "0": "0e11131519110e",
    "1": "040c040404040e",
    "2": "0e11010608101f",
    "3": "1e01010e01011e",
    "4": "02060a121f0202",
    "5": "1f101e0101110e",
    "6": "0608101e11110e",
    "7": "1f010204080808",
    "8": "0e11110e11110e",
    "9": "0e11110f01020c",
    "A": "0e11111f111111",
    "B": "1e11111e11111e",
    "C": "0e11101010110e",
    "D": "1e11111111111e",
    "E": "1f10101e10101f",
    "G": "0e11101711110f",
    "H": "1111111f111111",
    "K": "11121418141211",
    "M": "111b1515111111",
    "N": "11191513111111",
    "O": "0e11111111110e",
    "P": "1e11111e101010",
    "S": "0f10100e01011e",
    "T": "1f040404040404",
    "U": "1111111111110e",
    "X": "11110a040a1111",
    "Y": "11110a04040404",
}


def _glyph(letter: str) -> np.ndarray:
    """The 7x5 mask of one letter or digit."""
    rows = np.frombuffer(bytes.fromhex(_FONT[letter.upper()]), np.uint8)
    return np.unpackbits(rows[:, None], axis=1)[:, 3:].astype(bool)


def _stretch(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """Nearest-neighbour resize that repeats rows and columns."""
    rows = np.arange(height) * mask.shape[0] // height
    columns = np.arange(width) * mask.shape[1] // width
    return mask[rows][:, columns]


def _word(text: str) -> np.ndarray:
    """The letters side by side, one empty column between two."""
    return np.concatenate([np.pad(_glyph(c), ((0, 0), (0, 1))) for c in text], axis=1)[:, :-1]


def _shape(name: str, size: int) -> np.ndarray:
    """A filled shape in a square of `size` pixels."""
    y, x = np.mgrid[0:size, 0:size]
    radius = size / 2
    dx, dy = x - (size - 1) / 2, y - (size - 1) / 2
    squared = dx**2 + dy**2
    masks = {
        "circle": squared <= radius**2,
        "square": np.ones((size, size), bool),
        "triangle": np.abs(dx) <= (y + 1) / 2,
        "cross": (np.abs(dx) <= size / 6) | (np.abs(dy) <= size / 6),
        "ring": (squared <= radius**2) & (squared >= (radius / 2) ** 2),
        "diamond": np.abs(dx) + np.abs(dy) <= radius,
    }
    return masks[name]


SHAPE_MASKS = {(name, size): _shape(name, size) for name in SHAPES for size in SHAPE_SIZES}
DIGIT_MASKS = {digit: _stretch(_glyph(digit), *DIGIT_SIZE) for digit in DIGITS}
WORD_MASKS = {word: _word(word) for word in WORDS}
