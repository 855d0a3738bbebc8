"""16,384 vision tokens through ``vtc.patch``: no matrix of tokens by tokens, which alone would take 1,024 MiB."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="limits memory as Linux does")

ROOT = Path(__file__).parents[2]
LIMIT = 1000  # MiB for one whole forward; a float32 matrix alone takes 1,024

SCRIPT = """
import sys, torch, vtc
from tests.limit import at_most
from transformers import LlavaConfig, LlavaForConditionalGeneration

torch.set_num_threads(1)
wide = dict(hidden_size=16, intermediate_size=16, num_attention_heads=1)
config = LlavaConfig(
    vision_config=dict(model_type="clip_vision_model", num_hidden_layers=2, image_size=512, patch_size=4, **wide),
    text_config=dict(model_type="llama", vocab_size=8, num_hidden_layers=4, max_position_embeddings=20000, **wide),
    image_token_index=3, image_seq_length=16384,
)
model = LlavaForConditionalGeneration(config).eval()
ids = torch.tensor([[5] * 8 + [3] * 16384 + [5] * 8])
prompt = dict(input_ids=ids, pixel_values=torch.randn(1, 3, 512, 512))

def forward():
    with torch.no_grad():
        model(**prompt, logits_to_keep=1)

forward()
shared = "share" in sys.argv
vtc.patch(model, sys.argv[1], budget=1024 if shared else 0.3, **({"share": True} if shared else {}))
if "control" in sys.argv:
    model.model.language_model.layers[1].register_forward_hook(lambda *_: torch.ones(16384, 16384) and None)
with at_most(LIMIT):
    forward()
print(vtc.report(model).average_tokens)
"""


@pytest.mark.parametrize(
    "method",
    [
        "random",
        "fastv",
        "bipartite",
        pytest.param("divprune share", marks=pytest.mark.slow),
        pytest.param("tome", marks=pytest.mark.slow),
        pytest.param("visionzip", marks=pytest.mark.slow),
        pytest.param("pyramiddrop", marks=pytest.mark.slow),
        pytest.param("grid", marks=pytest.mark.slow),
        pytest.param("pool", marks=pytest.mark.slow),
    ],
)
def test_a_picture_of_16384_tokens(method):
    run = forward_of(method)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) <= 0.3 * 16384


def test_one_matrix_would_break_the_limit():
    run = forward_of("random control")
    assert run.returncode != 0 and "allocate" in run.stderr


def forward_of(words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", SCRIPT.replace("LIMIT", str(LIMIT)), *words.split()]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
