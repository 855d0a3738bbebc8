"""``quant_method: "vtc"`` for transformers: ``from_pretrained`` and ``save_pretrained`` of compressed models.

transformers knows third-party formats only after they are registered: importing ``vtc.weights`` registers, ``vtc.load``
does it for you. A format that it does not know it skips with a warning, and the weights are random. So the config of a
compressed model also asks for a fusion, ``LOCK``, which transformers does not know either and refuses by name; the
registered format takes it out while it loads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    AUTO_QUANTIZER_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from vtc.errors import CheckpointError, VTCError, WeightsError
from vtc.weights.codec.linear import CompressedEmbedding, CompressedLinear
from vtc.weights.formats import register
from vtc.weights.structure.sharing import BorrowedLinear, OutputNorm, normalise
from vtc.weights.structure.sites import recount

METHOD, VERSION = "vtc", 1
LOCK = "these weights are compressed by vtc; load the folder with vtc.load(folder), or import vtc.weights first"


class VTCConfig(QuantizationConfigMixin):
    """``quantization_config`` of a compressed model. layers: by name, what ``CompressedLinear.written`` gave; manifest:
    where they come from (recipe, errors, bytes)."""

    def __init__(
        self,
        layers: dict[str, Any] | None = None,
        manifest: dict[str, Any] | None = None,
        version: int = VERSION,
        **other: Any,
    ):
        if type(version) is not int or version != VERSION:
            raise CheckpointError(
                f"this model is compressed in format {str(version)[:80]} and this vtc reads {VERSION}; use another one"
            )
        unknown = sorted(set(other) - {"quant_method"})
        if unknown:
            raise CheckpointError(f"quantization_config has unknown fields {unknown}; use the vtc that wrote it")
        for name, told in (layers or {}).items() if isinstance(layers, dict | None) else [("layers", layers)]:
            check_written(name, told)
        if not isinstance(manifest, dict | None):
            raise CheckpointError(f"quantization_config: manifest is {str(manifest)[:80]!r}, no object; save again")
        self.quant_method: Any = METHOD
        self.layers, self.manifest, self.version = layers or {}, manifest or {}, version


LONGEST = 400  # letters of a layer's name
KINDS = {
    "terms": list,
    "bias": bool,
    "embedding": bool,
    "linear": list,
    "borrows": str,
    "rank": int,
    "output_norm": int,
}


def check_written(name: str, told: Any) -> None:
    """Raises ``CheckpointError`` for a description of a layer with other keys or kinds of values than ``written``
    gives."""
    if len(name) > LONGEST or not isinstance(told, dict) or not set(told) <= set(KINDS) or "terms" not in told:
        raise CheckpointError(f"{name[:LONGEST]} is described by {str(told)[:120]}, not by terms; save the model again")
    for key, value in told.items():
        if type(value) is not KINDS[key]:
            raise CheckpointError(f"{name}: {key} is {str(value)[:80]!r}, no {KINDS[key].__name__}; save again")
    if not (told.get("embedding") or {"bias", "borrows", "output_norm"} & set(told)):
        raise CheckpointError(f"{name} does not say whether it has a bias; save the model again")


class VTCQuantizer(HfQuantizer):
    """Puts compressed layers where the config says, before the weights are read."""

    requires_calibration = True
    quantization_config: VTCConfig

    def update_tp_plan(self, config: Any) -> Any:
        """Here transformers shows a quantizer the config, and from 5.20 on in ``update_attn_implementation``."""
        unlock(config)
        return config

    update_attn_implementation = update_tp_plan

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> None:
        install(model, self.quantization_config.layers)

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> None:
        check_shapes(model)
        lock(model.config)

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True

    @property
    def is_qat_trainable(self) -> bool:
        return True  # what is not rounded may learn: norms, biases, low-rank factors (``vtc.training.factors``)


def register_with_transformers() -> None:
    """Make the format known to transformers; does nothing the second time."""
    if METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantizer(METHOD)(VTCQuantizer)
    if METHOD not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        register_quantization_config(METHOD)(VTCConfig)


@register("vtc")
def save_pretrained(model: Any, folder: Path) -> None:
    """Every term, bit-equal, as transformers writes it."""
    model.save_pretrained(folder)


def install(model: nn.Module, layers: dict[str, Any]) -> None:
    """Put empty layers as ``layers`` describes them into ``model`` (on the meta device). Raises ``CheckpointError`` for
    a name that matches no layer: silence here would be random weights."""
    names = dict(model.named_modules())
    for name, written in layers.items():
        if "borrows" not in written and "output_norm" not in written:
            where = resolve(name, names)
            replace_module(model, where, empty(name, written, names[where]))
            if "linear" in written:
                recount(model.get_submodule(where.rpartition(".")[0]))
    for name, written in layers.items():  # of others' weights, so those must stand
        where = resolve(name, names)
        if "borrows" in written:
            replace_module(model, where, borrowed(name, written, names[where], model, names))
        elif "output_norm" in written:
            with torch.device("meta"):
                norm = OutputNorm(*torch.empty(2, size_of_norm(name, written)))
            normalise(model.get_submodule(where), norm)


def check_shapes(model: nn.Module) -> None:
    """Raises ``CheckpointError`` where a tensor that was read has another shape than its term: older transformers
    compare none of a quantized model's."""
    for name, module in model.named_modules():
        terms = module.each() if isinstance(module, CompressedLinear) else []
        for n, term in terms:
            for key, (shape, _) in term.shapes(module.out_features, module.in_features, torch.float32).items():
                found = tuple(module.tensors(n)[key].shape)
                if found != shape:
                    raise CheckpointError(f"{name}: {key} of {term} has the shape {found}, not {shape}; save again")
        if isinstance(module, CompressedEmbedding):
            for key, (shape, _) in module.term.shapes(
                module.num_embeddings, module.embedding_dim, torch.float32
            ).items():
                if tuple(module.get_buffer(key).shape) != shape:
                    raise CheckpointError(f"{name}: {key} of {module.term} has another shape than {shape}; save again")


def borrowed(name: str, written: dict[str, Any], found: nn.Module, model: nn.Module, names: Any) -> BorrowedLinear:
    """The layer that takes its weight from the one that ``written`` names. Raises ``CheckpointError``."""
    rank: Any = written.get("rank")
    lender = model.get_submodule(resolve(str(written["borrows"]), names))
    sizes = [(m.in_features, m.out_features) for m in (found, lender) if type(m) is nn.Linear]
    if found is lender or len(sizes) != 2 or sizes[0] != sizes[1]:
        raise CheckpointError(f"{name} cannot borrow from {written['borrows']!r}; the checkpoint is of another model")
    if type(rank) is not int or not 1 <= rank <= min(sizes[0]):
        raise CheckpointError(f"{name}: rank {rank!r} is not between 1 and {min(sizes[0])}; save the model again")
    return BorrowedLinear.empty(lender, rank, bool(written.get("bias")))  # type: ignore[arg-type]


def size_of_norm(name: str, written: dict[str, Any]) -> int:
    size = written["output_norm"]
    if type(size) is not int or not 0 < size < 2**20:
        raise CheckpointError(f"{name}: output_norm is {size!r}, no number of features; save the model again")
    return size


def written(layer: Any, resized: bool, names: dict[int, str] | None = None) -> dict[str, Any]:
    """A layer as ``config.json`` describes it; ``resized``: to another size than the model's config says; names: of
    modules by id, for one that borrows. Raises ``WeightsError`` where its lender is gone."""
    if isinstance(layer, BorrowedLinear):
        if id(layer.lender) not in (names or {}):
            raise WeightsError("a layer borrows from one that was removed or replaced; borrow last")
        return {"terms": [], "borrows": names[id(layer.lender)], "rank": layer.rank, "bias": layer.bias is not None}  # type: ignore[index]
    if isinstance(getattr(layer, "output_norm", None), OutputNorm):
        return {"terms": [], "output_norm": len(layer.output_norm.scale)}
    found = {"terms": [], "bias": layer.bias is not None} if isinstance(layer, nn.Linear) else layer.written()
    return found | {"linear": [layer.in_features, layer.out_features]} if resized else found


def empty(name: str, written: dict[str, Any], found: nn.Module) -> nn.Module:
    """The layer that ``written`` describes, without its tensors, to stand where ``found`` does."""
    kind: Any = CompressedEmbedding if written.get("embedding") else CompressedLinear
    if not isinstance(found, nn.Embedding if kind is CompressedEmbedding else nn.Linear):
        raise CheckpointError(f"{name} is a {type(found).__name__} in this model; the checkpoint is of another one")
    if "linear" in written:
        found = resized(name, written, found)
        if not written["terms"]:
            return found
    try:
        return kind.read(written, found)
    except VTCError as error:
        raise CheckpointError(f"{name}: {error}") from error


def resized(name: str, written: dict[str, Any], found: Any) -> nn.Linear:
    """A plain layer of the size that ``written`` gives, on the meta device. Raises ``CheckpointError``."""
    size, dtype = written["linear"], found.weight.dtype
    whole = isinstance(size, list) and [type(n) for n in size] == [int, int]
    if not (whole and 0 < size[0] <= found.in_features and 0 < size[1] <= found.out_features):
        raise CheckpointError(
            f"{name}: 'linear' is {size!r}, not inputs and outputs of at most [{found.in_features}, "
            f"{found.out_features}]; save the model again"
        )
    inputs, outputs = size
    return nn.Linear(inputs, outputs, bias=bool(written.get("bias")), dtype=dtype, device="meta")


def check_described(model: Any, format: str) -> None:
    """Raises ``CheckpointError`` for layers of other sizes, or of others' weights: only vtc's config describes them."""
    config = config_of(model)
    for name, told in ({} if config is None else config.layers).items():
        if {"linear", "borrows", "output_norm"} & set(told):
            raise CheckpointError(f"{name} is not as the model's config has it, which {format} cannot express")


def resolve(name: str, names: Any) -> str:
    """The module called ``name``, or the only one whose name ends so (models load inside other models)."""
    if name in names:
        return name
    ends = [other for other in names if other.endswith(f".{name}") or name.endswith(f".{other}") and other]
    if len(ends) != 1:
        raise CheckpointError(
            f"{name} is named in the checkpoint and matches {len(ends)} layers of this model; the checkpoint is of "
            "another model, or of another version of transformers"
        )
    return ends[0]


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put ``module`` where ``name`` is."""
    parent, _, child = name.rpartition(".")
    model.get_submodule(parent)._modules[child] = module


def mark(model: Any, layers: dict[str, Any], manifest: dict[str, Any]) -> None:
    """Tell transformers that ``model`` is compressed, so that ``save_pretrained`` says so."""
    register_with_transformers()
    config = VTCConfig(layers, manifest)
    model.config.quantization_config = config
    lock(model.config)
    model.hf_quantizer = VTCQuantizer(config, pre_quantized=True)
    model.is_quantized = True
    model.quantization_method = METHOD


def unmark(model: Any) -> None:
    """Undo ``mark``."""
    unlock(model.config)
    model.hf_quantizer.remove_quantization_config(model)


def lock(config: Any) -> None:
    """Let transformers refuse what is saved with ``config`` where the format is not registered."""
    for part in parts_of(config):
        part.fusion_config = {**(getattr(part, "fusion_config", None) or {}), LOCK: True}


def unlock(config: Any) -> None:
    """Undo ``lock``."""
    for part in parts_of(config):
        others = {name: on for name, on in (getattr(part, "fusion_config", None) or {}).items() if name != LOCK}
        if others:
            part.fusion_config = others
        elif hasattr(part, "fusion_config"):
            del part.fusion_config


def parts_of(config: Any) -> list[Any]:
    """A config and those inside: transformers loads a language model of a folder by its own."""
    inside = [part for name in config.sub_configs if (part := getattr(config, name, None)) is not None]
    return [config, *(deeper for part in inside for deeper in parts_of(part))]


def config_of(model: Any) -> VTCConfig | None:
    """The ``VTCConfig`` of a compressed model, None of any other."""
    config = getattr(getattr(model, "config", None), "quantization_config", None)  # plain ViTs of timm have no config
    return config if isinstance(config, VTCConfig) else None
