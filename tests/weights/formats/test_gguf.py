"""The language model as GGUF, read back by gguf's own reader."""

from __future__ import annotations

import pytest
import torch

import vtc
from tests import zoo
from vtc.errors import CheckpointError
from vtc.weights.formats.gguf import export, rotary_order

gguf = pytest.importorskip("gguf", exc_type=ImportError)


def read(file) -> tuple[dict, dict]:
    """Values by name, in the shape of torch, and the types they are stored in."""
    found = gguf.GGUFReader(file).tensors
    values = {t.name: torch.from_numpy(gguf.quants.dequantize(t.data, t.tensor_type).copy()) for t in found}
    return values, {t.name: t.tensor_type.name for t in found}


@pytest.mark.parametrize(
    ("family", "architecture"), [("llava", "llama"), ("llava_onevision", "qwen2"), ("internvl", "qwen2")]
)
@pytest.mark.parametrize("bits", [4, 8])
def test_codes_are_kept(family, architecture, bits, tmp_path):
    """Only the scale is rounded, to float16; rows of q and k stand as llama.cpp rotates them, in llama alone."""
    model = zoo.build(family)
    vtc.compress(model, f"rtn:bits={bits}:group=32", progress=False)
    file = export(model, tmp_path / "model.gguf")
    values, kinds = read(file)
    decoder = model.model.language_model
    config = decoder.config
    assert gguf.GGUFReader(file).fields["general.architecture"].contents() == architecture
    assert gguf.GGUFReader(file).fields[f"{architecture}.attention.head_count_kv"].contents() == 2
    for theirs, ours, heads in (
        ("attn_q", "self_attn.q_proj", config.num_attention_heads),
        ("attn_k", "self_attn.k_proj", config.num_key_value_heads),
        ("attn_v", "self_attn.v_proj", None),
        ("attn_output", "self_attn.o_proj", None),
        ("ffn_down", "mlp.down_proj", None),
        ("attn_norm", "input_layernorm", None),
    ):
        for n in range(config.num_hidden_layers):
            layer = decoder.layers[n].get_submodule(ours)
            order = rotary_order(len(layer.weight), heads) if heads and architecture == "llama" else slice(None)
            got = values[f"blk.{n}.{theirs}.weight"]
            assert torch.allclose(got, layer.weight[order], rtol=2**-10, atol=0), theirs
            assert kinds[f"blk.{n}.{theirs}.weight"] == ("F32" if theirs == "attn_norm" else f"Q{bits}_0")
            if getattr(layer, "bias", None) is not None:
                assert torch.equal(values[f"blk.{n}.{theirs}.bias"], layer.bias[order])
    assert {"token_embd.weight", "output_norm.weight"} < set(values)
    assert torch.allclose(values["token_embd.weight"], decoder.embed_tokens.weight, atol=0.02)
    assert [p.name for p in tmp_path.iterdir()] == ["model.gguf"]


def test_rows_of_a_head_are_paired():
    assert rotary_order(8, 2).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_scores_are_the_same_when_neighbours_rotate():
    """What the order is for: q and k in llama.cpp's order, rotated by neighbours, give transformers' scores."""
    torch.manual_seed(0)
    x, wq, wk = torch.randn(5, 16), torch.randn(8, 16), torch.randn(8, 16)
    angle = torch.arange(5.0)[:, None] * 10000.0 ** -(torch.arange(4.0) / 4)
    cos, sin = angle.cos(), angle.sin()

    def halves(y):
        a, b = y[:, :4], y[:, 4:]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=1)

    def neighbours(y):
        a, b = y[:, ::2], y[:, 1::2]
        return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=2).flatten(1)

    want = halves(x @ wq.T) @ halves(x @ wk.T).T
    order = rotary_order(8, 1)
    assert torch.allclose(neighbours(x @ wq[order].T) @ neighbours(x @ wk[order].T).T, want, atol=1e-4)
    assert not torch.allclose(neighbours(x @ wq.T) @ neighbours(x @ wk.T).T, want, atol=1e-1)


def test_what_has_no_codes_of_its_own_is_rounded(tmp_path):
    """3 bits, low rank, plain layers: their weights, in the type that is asked for."""
    model = zoo.build("llava")
    vtc.compress(model, "rtn:bits=3:group=32", progress=False)
    values, kinds = read(export(model, tmp_path / "model.gguf", rest="F16"))
    layer = model.model.language_model.layers[0].mlp.up_proj
    assert kinds["blk.0.ffn_up.weight"] == "F16"
    assert torch.allclose(values["blk.0.ffn_up.weight"], layer.weight, rtol=2**-10, atol=1e-7)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "gemma3", "paligemma"])
def test_other_decoders_are_refused(family, tmp_path):
    with pytest.raises(CheckpointError, match="is not exported; those that are: llama, mistral, qwen2"):
        export(zoo.build(family), tmp_path / "model.gguf")
    assert not list(tmp_path.iterdir())


def test_bad_options_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="rest 'Q2_K' is none of"):
        export(zoo.build("llava"), tmp_path / "model.gguf", rest="Q2_K")
    assert not list(tmp_path.iterdir())
