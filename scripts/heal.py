r"""Heal a model after structured pruning, low rank, borrowed blocks or a small budget: it learns the original's logits.

vtc compress MODEL --recipe ... --output runs/small
python scripts/heal.py --model runs/small --teacher MODEL --data conversations.jsonl --output runs/healed

As in Minitron (arXiv 2407.14679) the loss is distillation alone, unless --weight leaves the answers a part. Low-rank
factors learn as factors; integers stay what they are. Options, files and going on after a stop: scripts/finetune.py.
"""

import sys

from vtc.training.command_line import parser, start

if __name__ == "__main__":
    given = parser(__doc__, {"train": "all", "distill": 1.0, "weight": 1.0}).parse_args()
    if given.teacher is None:
        sys.exit("error: healing needs the original; give --teacher FOLDER")
    start(given)
