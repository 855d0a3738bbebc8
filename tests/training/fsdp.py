"""Run by torchrun: three steps of distillation under FSDP (``fully_shard``) on CPUs, the losses as JSON from rank 0.

accelerate shards on accelerators only, so the sharding is torch's own here; the loss is that of ``FineTuner``.
"""

from __future__ import annotations

import json
import sys

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

import vtc
from tests.eval.tiny import picture, tiny_llava, tiny_processor
from vtc.training.collate import Collator
from vtc.training.conversations import Conversation, Turn
from vtc.training.losses import answer_loss, at_labels, distillation_loss
from vtc.training.teachers import Own

ANSWERS = ("red", "blue", "green", "two")


def main(shard: bool, method: str) -> None:
    rank, world, backend = 0, 1, None
    if shard:
        dist.init_process_group("gloo")
        rank, world, backend = dist.get_rank(), dist.get_world_size(), dist.get_backend()
    torch.manual_seed(0)  # what a method learns starts at random
    model = vtc.patch(tiny_llava(), method, budget=0.25).train()
    if shard:
        for layer in model.model.language_model.layers:
            fully_shard(layer, mesh=dist.device_mesh.init_device_mesh("cpu", (world,)))
        fully_shard(model, mesh=dist.device_mesh.init_device_mesh("cpu", (world,)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    collate, teacher, losses = Collator(tiny_processor()), Own(), []
    rows = [Conversation(a, (Turn("what is the color ?", a),), (picture(n),)) for n, a in enumerate(ANSWERS)]
    for _ in range(3):
        batch = {k: v for k, v in collate(rows[rank::world]).items() if k != "sample_ids"}
        labels = batch.pop("labels")
        taught = at_labels(teacher(model, batch), labels)[0]
        scores, wanted = at_labels(model(**batch, use_cache=False).logits, labels)
        loss = (answer_loss(scores, wanted) + distillation_loss(scores, taught, 2.0)) / len(wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen = loss.detach().clone()
        if shard:
            dist.all_reduce(seen)
        losses.append(float(seen) / world)
    parts = [p for p in model.parameters() if type(p).__name__ == "DTensor"]
    held = sum(p.to_local().numel() for p in parts) / sum(p.numel() for p in parts) if parts else 1
    if rank == 0:
        print(json.dumps({"world": world, "backend": backend, "losses": losses, "sharded": len(parts), "held": held}))
    if shard:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1] == "shard", sys.argv[2])
