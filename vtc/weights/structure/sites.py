"""The parts of a decoder that can become smaller: MLP neurons, and attention heads with the keys they share."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from vtc.errors import UnsupportedModel, WeightsError
from vtc.models.base import Family
from vtc.weights.structure.edits import Edits

KINDS = ("heads", "neurons")
ATTENTION, MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
COUNTS = {"num_heads": "q_proj", "num_attention_heads": "q_proj", "num_key_value_heads": "k_proj"}


@dataclass(frozen=True)
class Site:
    """One decoder layer's attention or MLP, seen as units that can go one by one.

    makers: the projections whose outputs are the channels, with the rows of one unit; reader: the projection that reads
    them; width: its columns of one unit.
    """

    name: str
    kind: str
    block: int
    parent: nn.Module
    makers: dict[str, int]
    reader: str
    width: int

    def linear(self, name: str) -> nn.Linear:
        found: Any = getattr(self.parent, name)
        return found

    @property
    def units(self) -> int:
        return self.linear(self.reader).in_features // self.width

    @property
    def cost(self) -> int:
        """Rows and columns of one unit: its parameters over the hidden size."""
        return sum(self.makers.values()) + self.width


def sites(model: nn.Module, family: Family, kinds: Iterable[str], skip: Iterable[str] = ()) -> list[Site]:
    """The sites of those ``kinds`` in the decoder, layer by layer; ``skip``: regular expressions on the names of their
    projections. Raises ``UnsupportedModel`` for a layer of another kind, ``WeightsError`` where none is left."""
    names = {id(module): name for name, module in model.named_modules()}
    kinds = tuple(kinds)
    if "heads" in kinds:
        refuse_shared_keys(family.decoder.config)
    found: list[Site] = []
    for block in range(len(family.layers)):
        if "heads" in kinds:
            if not family.attends(block):
                raise UnsupportedModel(f"decoder layer {block} is recurrent and has no heads to prune; leave heads out")
            found.append(_heads(family.decoder_attention(block), block, names))
        if "neurons" in kinds:
            found.append(_neurons(family.layers[block], block, names))
    left = [s for s in found if not any(re.search(p, f"{s.name}.{n}") for p in skip for n in (*s.makers, s.reader))]
    if not left:
        raise WeightsError(f"skip leaves no {' or '.join(kinds)} in any of {len(found)} places; skip less")
    return left


def _heads(attention: Any, block: int, names: dict[int, str]) -> Site:
    name = names[id(attention)]
    _check(name, attention, ATTENTION)
    size: Any = getattr(attention, "head_dim", None)
    sizes = {each: getattr(attention, each).out_features for each in ATTENTION[:3]}
    queries, keys, values = sizes.values()
    regular = isinstance(size, int) and keys == values and not keys % size and not queries % keys
    if not regular or queries != attention.o_proj.in_features:
        raise UnsupportedModel(
            f"{name}: its projections have {queries}, {keys} and {values} outputs and o_proj has "
            f"{attention.o_proj.in_features} inputs, which are no heads of size {size}; leave heads out"
        )
    for each, parameter in attention.named_parameters():
        if each.split(".")[0] not in ATTENTION and parameter.numel() != size:
            raise UnsupportedModel(f"{name} has a parameter {each} for every head, which cannot go with it here")
    wide = queries // keys * size
    return Site(name, "heads", block, attention, {"q_proj": wide, "k_proj": size, "v_proj": size}, "o_proj", wide)


def _neurons(layer: nn.Module, block: int, names: dict[int, str]) -> Site:
    found = [m for m in layer.modules() if all(hasattr(m, each) for each in MLP)]
    if len(found) != 1:
        here = {each.rsplit(".", 1)[-1] for each, _ in layer.named_modules()}
        missing = ", ".join(each for each in MLP if each not in here) or f"a single MLP (it has {len(found)})"
        raise UnsupportedModel(f"{names[id(layer)]} has no {missing}; neurons are pruned in {', '.join(MLP)} only")
    name = names[id(found[0])]
    _check(name, found[0], MLP)
    return Site(name, "neurons", block, found[0], {"gate_proj": 1, "up_proj": 1}, "down_proj", 1)


def refuse_shared_keys(config: Any) -> None:
    """Raises ``UnsupportedModel`` for decoders in which a layer reads the keys of another."""
    if getattr(config, "num_kv_shared_layers", 0) or "reuse" in (getattr(config, "kv_sharing_modes", None) or ()):
        raise UnsupportedModel(
            "decoder layers of this model share their keys and values, so neither heads nor layers can go alone; prune "
            "neurons instead"
        )


def _check(name: str, parent: nn.Module, linears: Iterable[str]) -> None:
    for each in linears:
        module = getattr(parent, each, None)
        if module is None:
            raise UnsupportedModel(f"{name} has no {each}; layers with {', '.join(linears)} can be pruned")
        if type(module) is not nn.Linear:
            raise WeightsError(f"{name}.{each} is a {type(module).__name__}; prune before it is compressed or adapted")


def shrink(site: Site, keep: Tensor, mean: Tensor | None, edits: Edits) -> None:
    """Leave only the units ``keep [U]`` of ``site``. mean ``[D]``: of the reader's inputs; what the lost channels gave
    on average goes into its bias (None: it does not)."""
    for name, size in site.makers.items():
        rows, old = keep.repeat_interleave(size).to(site.linear(name).weight.device), site.linear(name)
        _put(site, name, old.weight[rows], None if old.bias is None else old.bias[rows], edits)
    old = site.linear(site.reader)
    columns = keep.repeat_interleave(site.width).to(old.weight.device)
    bias: Tensor | None = old.bias
    if mean is not None:
        lost = (old.weight[:, ~columns].float() @ mean.to(old.weight.device)[~columns]).to(old.weight.dtype)
        bias = lost if bias is None else bias + lost
    _put(site, site.reader, old.weight[:, columns], bias, edits)
    recount(site.parent, edits)


def _put(site: Site, name: str, weight: Tensor, bias: Tensor | None, edits: Edits) -> None:
    old = site.linear(name)
    new = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    new.weight = nn.Parameter(weight.detach().clone(), old.weight.requires_grad)
    if bias is not None:
        new.bias = nn.Parameter(bias.detach().clone(), old.weight.requires_grad)
    edits.set(site.parent, name, new.train(old.training))
    edits.resized.append(new)


def recount(parent: Any, edits: Edits | None = None) -> None:
    """Numbers of heads and neurons that ``parent`` keeps beside its projections follow them."""
    edits = edits or Edits()
    for attribute, projection in COUNTS.items():
        if hasattr(parent, attribute) and hasattr(parent, projection):
            edits.set(parent, attribute, getattr(parent, projection).out_features // parent.head_dim)
    if hasattr(parent, "intermediate_size") and hasattr(parent, "down_proj"):
        edits.set(parent, "intermediate_size", parent.down_proj.in_features)
