"""The language model as a GGUF file, the format of llama.cpp, through the package ``gguf`` (an extra of vtc).

Layers of plain symmetric integers of 4 or 8 bits keep their codes: a group that is a multiple of 32 inputs is several
blocks of Q4_0 or Q8_0 with one scale, which float16 may round. Other matrices are rounded by ``gguf`` to ``rest``.

What it is not: no mmproj file is written, so pictures cannot be used with it; no tokenizer is written ("no_vocab"), so
prompts are token ids; llama.cpp itself was not run, the file was read back by gguf's own reader only.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vtc.errors import CheckpointError
from vtc.files.sync import sync
from vtc.models import family_of
from vtc.version import __version__
from vtc.weights.codec.linear import CompressedLinear
from vtc.weights.codec.sparsity import DENSE
from vtc.weights.codec.terms.ints import Ints
from vtc.weights.formats import hf

BLOCK = 32  # weights of one row that share a scale, in Q4_0 and Q8_0
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2"}  # model_type -> llama.cpp's name
TYPES = ("Q8_0", "Q4_0", "F16")


def export(model: nn.Module, file: str | os.PathLike, rest: str = "Q8_0") -> Path:
    """Write the language model of ``model`` to ``file``. rest: the type of matrices without 4 or 8 bit codes.

    The file appears whole or not at all. Raises ``CheckpointError`` for a decoder that is not llama- or qwen2-like, for
    scaled rotary embeddings, another ``rest``, or a full disk.
    """
    gguf = package()
    if rest not in TYPES:
        raise CheckpointError(f"rest {rest!r} is none of {', '.join(TYPES)}")
    hf.check_described(model, "GGUF")
    family = family_of(model)
    config: Any = family.decoder.config
    architecture = architecture_of(config)
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.saving-{os.getpid()}")
    writer = gguf.GGUFWriter(temporary, architecture)
    try:
        describe(writer, config, gguf)
        for name, tensor, kind in tensors(model, family, architecture, rest, gguf):
            writer.add_tensor(name, tensor, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        sync(temporary)
        temporary.replace(file)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be written ({error.strerror or error}); make room") from error
    finally:
        temporary.unlink(missing_ok=True)
    return file


def architecture_of(config: Any) -> str:
    """What llama.cpp calls the decoder. Raises ``CheckpointError`` for one it would not compute alike."""
    found = ARCHITECTURES.get(config.model_type)
    if found is None:
        known = ", ".join(ARCHITECTURES)
        raise CheckpointError(f"a decoder of type {config.model_type!r} is not exported; those that are: {known}")
    rope = config.rope_parameters or {}
    if rope.get("rope_type", "default") != "default":
        raise CheckpointError(f"rotary embeddings of type {rope['rope_type']!r} are not exported, plain ones are")
    window = getattr(config, "sliding_window", None)
    if window is not None and (config.model_type != "qwen2" or config.use_sliding_window):
        raise CheckpointError(f"a decoder with a sliding window ({window}) is not exported")
    if getattr(config, "mlp_bias", False) or config.hidden_act != "silu":
        raise CheckpointError("only decoders with SiLU and no bias in their MLP are exported")
    return found


def describe(writer: Any, config: Any, gguf: Any) -> None:
    """The header: sizes, heads, rotary embeddings."""
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_name("vtc export")
    writer.add_description(f"language model only, written by vtc {__version__}")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def tensors(model: nn.Module, family: Any, architecture: str, rest: str, gguf: Any):
    """``(name, array, type)`` of every tensor, by llama.cpp's names, one at a time."""
    config: Any = family.decoder.config
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    modules = {f"model.{name}": module for name, module in family.decoder.named_modules()}
    if (output := getattr(model, "get_output_embeddings", lambda: None)()) is not None:
        if output.weight is not family.decoder.get_input_embeddings().weight:
            modules["lm_head"] = output
    for name, module in modules.items():
        if not hasattr(module, "weight"):
            continue
        target = names.get_name(name)
        if target is None:
            raise CheckpointError(f"{name} has no name in llama.cpp's {architecture}; the decoder is another one")
        kind = name.rsplit(".")[-1]
        order = rotary_order(module.weight.shape[0], heads[kind]) if architecture == "llama" and kind in heads else None
        yield (f"{target}.weight", *matrix(module, order, rest, gguf))
        bias = getattr(module, "bias", None)
        if bias is not None:
            yield f"{target}.bias", array(bias if order is None else bias[order]), gguf.GGMLQuantizationType.F32


def rotary_order(rows: int, heads: int) -> Tensor:
    """``[rows]``: transformers rotates the halves of a head, llama.cpp's llama pairs neighbours: row 0 of the first
    half, row 0 of the second, row 1 of the first..."""
    return torch.arange(rows).view(heads, 2, -1).transpose(1, 2).flatten()


def matrix(module: nn.Module, order: Tensor | None, rest: str, gguf: Any) -> tuple[np.ndarray, Any]:
    """The stored array of a module's weight, rows in ``order``, and its type."""
    kinds = gguf.GGMLQuantizationType
    if isinstance(module, CompressedLinear) and (found := blocks(module)) is not None:
        stored, kind = found
        return (stored if order is None else stored[order.numpy()]), kinds[kind]
    weight: Any = module.weight
    values = array(weight if order is None else weight[order])
    if values.ndim < 2:
        return values, kinds.F32
    kind = kinds[rest if values.shape[1] % BLOCK == 0 else "F16"]
    return gguf.quantize(values, kind), kind


def blocks(layer: CompressedLinear) -> tuple[np.ndarray, str] | None:
    """``[O, bytes]`` uint8 of the layer's codes as Q4_0 or Q8_0 blocks; None for a layer they cannot express.

    A block is a float16 scale and 32 codes: 8 bits as signed bytes, 4 bits as the low halves of 16 bytes (codes 0 to
    15) and their high halves (16 to 31), offset by 8 as ours are.
    """
    term = layer.terms[0]
    out, width = layer.out_features, layer.in_features
    if len(layer.terms) != 1 or not isinstance(term, Ints) or term.bits not in (4, 8) or width % BLOCK:
        return None
    if term.layout != DENSE or term.zeros or term.scaled or (term.group or width) % BLOCK:
        return None
    tensors = layer.tensors(0)
    codes = term.codes(tensors, out, width).view(out, -1, BLOCK)
    scale = tensors["scale"].repeat_interleave((term.group or width) // BLOCK, dim=1)[:, : width // BLOCK]
    half = scale.to(torch.float16)
    if not bool(torch.isfinite(half).all()):
        return None
    if term.bits == 4:
        codes = codes[..., : BLOCK // 2] | codes[..., BLOCK // 2 :] << 4
    else:
        codes = codes ^ 128  # offset by 128 -> two's complement
    stored = torch.cat([half.unsqueeze(-1).contiguous().view(torch.uint8), codes], dim=-1)
    return stored.flatten(1).cpu().numpy(), f"Q{term.bits}_0"


def array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().float().cpu().numpy()


def package() -> Any:
    try:
        import gguf
    except ImportError:
        raise CheckpointError("GGUF files need the package gguf: pip install 'vtc-vlm[gguf]'") from None
    return gguf
