r"""Fine-tune a vision-language model through a patch, so that it answers from fewer vision tokens.

python scripts/finetune.py --model vtc/eval/scenes/checkpoint --data scenes --method perceiver --budget 12 \
    --train compressor --distill 2 --output runs/perceiver
torchrun --nproc_per_node 2 scripts/finetune.py ...      # the losses of one process with twice the batch

--data is a .jsonl of conversations, a data set of the hub, or the built-in testbed:
    {"id": "1", "image": "1.png", "messages": [{"role": "user", "content": "<image> what is it ?"},
                                               {"role": "assistant", "content": "a ring"}]}

OUTPUT/model is the result, for vtc.load, with the adapters of --train lora; log.jsonl and loss.png tell how it went.
Started again with the same settings it goes on from its last checkpoint; others are refused.
"""

from vtc.training.command_line import parser, start

if __name__ == "__main__":
    start(parser(__doc__, {}).parse_args())
