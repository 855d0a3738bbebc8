"""The parts of a decoder that can go or be shared: ``sites`` (heads, neurons), ``importance`` (which matter),
``sharing`` (layers that borrow weights), ``edits`` (changes that can be taken back).
"""
