"""Where a method's stages stand in one model's decoder, and whether they can stand there."""

from __future__ import annotations

from vtc.engine.capture.attention_hook import uses_interface
from vtc.errors import UnsupportedModel
from vtc.methods.base import Method
from vtc.models.base import Family
from vtc.signals.base import DecoderHook


def place_stages(method: Method, family: Family) -> dict[int, int]:
    """Decoder layer -> stage. Raises ``ValueError`` for layers the model has not, and ``UnsupportedModel`` for stages
    that its decoder cannot have."""
    depth = len(family.layers)
    at: list[int] = []
    for stage in method.stages():
        index = stage.index(depth)
        if stage.freezes and isinstance(stage.layer, float):  # DeepStack writes to rows that run
            index = max(index, family.deepstack)
        taken = bool(at) and isinstance(stage.layer, float) and index <= at[-1]
        at.append(at[-1] + 1 if taken else index)  # two fractions can fall on one layer of a shallow decoder
    if sorted(set(at)) != at or at[-1] >= depth:
        raise ValueError(
            f"{method.name} cuts before layers {at} and the model has {depth}; stages must increase and lie below "
            f"{depth}"
        )
    check_hooks(method, at)
    if method.rest:
        check_rest(method, depth, at)
    one_run = at == [0] and not method.rest
    if method.freezes:
        check_freezing(method, family, at)
    if family.hybrid and (not one_run or method.freezes or method.reduces_keys or method.skips_layers):
        raise UnsupportedModel(
            f"{type(family.model).__name__} has recurrent decoder layers, which cannot skip tokens midway; "
            "use a method at the decoder's input, such as divprune"
        )
    return {layer: stage for stage, layer in enumerate(at)}


def hooked(method: Method, at: list[int]) -> set[int]:
    """The decoder layers whose attention the method's signals look at, for stages before the layers ``at``."""
    hooks = [signal.hook(layer) for stage, layer in enumerate(at) for signal in method.signals(stage)]
    return {hook.layer for hook in hooks if isinstance(hook, DecoderHook)}


def check_hooks(method: Method, at: list[int]) -> None:
    """A stage at the decoder's input has no layer before it whose attention could be seen, and where tokens skip
    layers, some of them did not run in the layer before."""
    if method.skips_layers and min(hooked(method, at), default=at[0]) < at[0]:
        raise ValueError(
            f"{method.name} looks at the layer before its own, and its tokens skip layers, so some would not be seen "
            'there; use a signal of the layer that comes, such as TextAttention(of="next")'
        )
    if min(hooked(method, at), default=0) < 0:
        raise ValueError(
            f"{method.name} looks at the layer before its stage, and a stage stands before layer 0; give it layer 1 or "
            "a later one"
        )


def can_freeze(family: Family) -> bool:
    """Whether vision tokens can stop in this decoder: all its layers attend by transformers' interface, and one comes
    after DeepStack and after the first."""
    depth = len(family.layers)
    return (
        not family.hybrid
        and all(family.attends(n) and uses_interface(family.decoder_attention(n)) for n in range(depth))
        and max(1, family.deepstack) < depth
    )


def check_freezing(method: Method, family: Family, at: list[int]) -> None:
    """Raises ``UnsupportedModel`` where DeepStack would write to vision tokens that have stopped."""
    if at[-1] < family.deepstack:
        raise UnsupportedModel(
            f"{method.name}: vision tokens stop before layer {at[-1]}, and {type(family.model).__name__} adds features "
            f"to them behind each of its first {family.deepstack}; let them stop at layer {family.deepstack} or later"
        )


def check_rest(method: Method, depth: int, at: list[int]) -> None:
    if len(method.rest) == depth:
        raise ValueError(f"{method.name}: rest={method.rest} is every decoder layer; leave one out at least")
    if method.rest[-1] >= depth:
        raise ValueError(
            f"{method.name}: rest={method.rest} and the model has {depth} decoder layers; the last is {depth - 1}"
        )
    if blind := sorted(hooked(method, at) & set(method.rest)):
        raise ValueError(
            f"{method.name} chooses by what layer {blind[0]} attends to, and its tokens rest there; leave "
            f"{blind[0]} out of rest={method.rest}"
        )
