"""What vLLM can be told besides: caches too small, compiled graphs, two processes, adapters, integer weights. The
answers stay those of transformers."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

import vtc
from tests.integrations.vllm.engines import KINDS, answers, chances, engine, in_transformers, in_vllm, path_of, texts
from vtc.eval import scenes
from vtc.integrations.vllm.model import Reducing

ASKED = [(sample.prompt, [sample.image]) for sample in scenes.samples("test", 60)]
SOME = ASKED[:20]
ADAPTED = ("q_proj", "v_proj", "o_proj", "up_proj", "down_proj")
RANK, ALPHA = 8, 16


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_requests_that_lose_their_cache_and_start_again(kind):
    """What a row stands for comes back with its picture. 12 requests of up to 86 tokens in 8 blocks of 32."""
    roomy, none_lost = long_answers(kind, blocks=200)
    small, lost = long_answers(kind, blocks=8)
    assert lost > 0 == none_lost
    assert texts(small) == texts(roomy)
    for one, other in zip(chances(small), chances(roomy), strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def long_answers(kind, blocks):
    """48 tokens to each of 12 questions, and how often a request lost its cache."""
    options = dict(num_gpu_blocks_override=blocks, max_model_len=128, max_num_batched_tokens=128)
    with engine(path_of(kind), KINDS[kind], "divprune+share", 24, disable_log_stats=False, **options) as llm:
        outputs = in_vllm(llm, ASKED[:12], max_tokens=48, ignore_eos=True, logprobs=0)
        return outputs, next(one.value for one in llm.get_metrics() if one.name == "vllm:num_preemptions")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["divprune", "divprune+share"])
@pytest.mark.parametrize("kind", KINDS)
def test_compiled(kind, method):
    from vllm.config import CompilationMode

    with engine(path_of(kind), KINDS[kind], method, 24, enforce_eager=False) as llm:
        mode = llm.llm_engine.vllm_config.compilation_config.mode
        outputs = in_vllm(llm, SOME)
    assert mode != CompilationMode.NONE
    assert texts(outputs) == in_transformers(path_of(kind), SOME, method, 24)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "method"), [("llava", "visionzip"), ("llava", "hiprune+share"), ("qwen", "hiprune+share")]
)
def test_two_processes(kind, method):
    """Each has its share of the heads: of the decoder, where a row's weight is added, and of the tower that a method
    looks at."""
    two = dict(tensor_parallel_size=2, distributed_executor_backend="mp")
    with engine(path_of(kind), KINDS[kind], method, 24, **two) as llm:
        outputs = in_vllm(llm, SOME)
    assert texts(outputs) == in_transformers(path_of(kind), SOME, method, 24)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_of_the_language_model(kind, tmp_path):
    """In a batch of its own: beside requests that have none vLLM's operators for the CPU give them the last adapter,
    whatever model it serves."""
    from vllm.lora.request import LoRARequest

    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    adapt(path_of(kind), adapter, merged)
    with_it = LoRARequest("mine", 1, str(adapter))
    with engine(path_of(kind), KINDS[kind], "divprune+share", 24, enable_lora=True, max_lora_rank=RANK) as llm:
        adapted, bare = texts(in_vllm(llm, SOME, lora_request=with_it)), texts(in_vllm(llm, SOME))
    want = in_transformers(str(merged), SOME, "divprune+share", 24)
    plain = in_transformers(path_of(kind), SOME, "divprune+share", 24)
    assert want != plain
    assert adapted == want and bare == plain


def adapt(path, adapter, merged):
    """A LoRA of random numbers, and the model with it merged."""
    model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32, trust_remote_code=False)
    draw, held = torch.Generator().manual_seed(0), {}
    for name, layer in model.named_modules():
        if "language_model" in name and name.endswith(ADAPTED):
            down = 0.12 * torch.randn(RANK, layer.in_features, generator=draw)
            up = 0.12 * torch.randn(layer.out_features, RANK, generator=draw)
            held |= {f"base_model.model.{name}.lora_A.weight": down, f"base_model.model.{name}.lora_B.weight": up}
            layer.weight.data += ALPHA / RANK * up @ down
    adapter.mkdir()
    save_file(held, adapter / "adapter_model.safetensors")
    said = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": list(ADAPTED), "bias": "none"}
    (adapter / "adapter_config.json").write_text(json.dumps(said))
    model.save_pretrained(merged)
    AutoProcessor.from_pretrained(path, trust_remote_code=False).save_pretrained(merged)


@pytest.mark.slow
def test_an_encoder_elsewhere(tmp_path, monkeypatch):
    """One engine encodes and writes, another reads and encodes nothing; one of another budget finds nothing to read."""
    encoded = []
    embed = Reducing.embed_multimodal
    monkeypatch.setattr(Reducing, "embed_multimodal", lambda self, **given: encoded.append(1) or embed(self, **given))

    def answered(role, budget):
        store = {"shared_storage_path": str(tmp_path)}
        said = {"ec_connector": "ECExampleConnector", "ec_role": role, "ec_connector_extra_config": store}
        with engine(path_of("llava"), KINDS["llava"], "divprune+share", budget, ec_transfer_config=said) as llm:
            encoded.clear()
            return texts(in_vllm(llm, SOME)), len(encoded)

    want = in_transformers(path_of("llava"), SOME, "divprune+share", 24)
    found, count = answered("ec_both", 24)
    assert found == want and count > 0
    assert answered("ec_consumer", 24) == (want, 0)
    found, count = answered("ec_consumer", 12)
    assert found == in_transformers(path_of("llava"), SOME, "divprune+share", 12) and count > 0


def test_an_adapter_of_the_tower_is_refused():
    with pytest.raises(Exception, match="LoRA on tower or projector"):
        with engine(
            path_of("llava"), KINDS["llava"], "divprune", 24, enable_lora=True, enable_tower_connector_lora=True
        ):
            pass


@pytest.mark.parametrize(
    ("kind", "option", "said"),
    [
        ("llava", {"enable_mm_embeds": True}, "the tower never saw"),
        ("qwen", {"enable_mm_embeds": True}, "the tower never saw"),
        ("qwen", {"mm_encoder_tp_mode": "data"}, "pictures of its own"),
    ],
)
def test_what_a_tower_does_not_show_is_refused(kind, option, said):
    with pytest.raises(Exception, match=said):
        with engine(path_of(kind), KINDS[kind], "visionzip", 24, **option):
            pass


@pytest.mark.slow
def test_integer_weights(tmp_path):
    """Four bits, as ``compressed-tensors`` has them. vLLM's kernel for the CPU takes bfloat16 alone: the answers are
    those of the same weights in float32 but where it rounds."""
    path = path_of("llava")
    processor = AutoProcessor.from_pretrained(path, trust_remote_code=False)
    model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32, trust_remote_code=False)
    vtc.compress(model, "rtn:bits=4:group=32")
    vtc.patch(model, "divprune+share", 24)
    vtc.save(model, tmp_path, processor, format="compressed-tensors", serve="vllm")
    want = answers(model, processor, ASKED)
    with engine(str(tmp_path), "", "", None, dtype="bfloat16") as llm:
        outputs = in_vllm(llm, ASKED)
    assert sum(got == right for got, right in zip(texts(outputs), want, strict=True)) >= 57
