"""What can go wrong, each with its remedy: ``ValueError`` subclasses that give value, bound and remedy."""


class VTCError(ValueError):
    """Base of every error this library raises on purpose."""


class UnsupportedModel(VTCError):
    """The model's pictures can never be reduced this way (or lack a signal the method needs)."""


class BudgetError(VTCError):
    """A budget that is malformed, or less than a method's fixed layers can reach.

    ``least`` is the least layer-averaged number of tokens the method can reach (``None`` when the value is malformed).
    """

    def __init__(self, message: str, least: int | None = None):
        super().__init__(message)
        self.least = least


class NotReduced(VTCError):
    """A forward brought pictures over the budget and the patch did not run: the answer would silently be unpatched."""


class UnknownName(VTCError):
    """A name that no registry entry has; the message names the neighbours."""


class DataError(VTCError):
    """A sample, file or folder that cannot be used; the message names file, line and remedy."""


class CheckpointError(VTCError):
    """A saved patch that is incomplete, unknown, or belongs to another model."""


class WeightsError(VTCError):
    """A recipe, a calibration or a layer that cannot be compressed as asked."""


class RunRefused(VTCError):
    """A run folder that must not be written: another writer, other settings, or files that are not ours to mend."""
