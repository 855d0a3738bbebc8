"""One run in several processes (torchrun): who is who, and waiting for each other."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

from vtc.errors import VTCError

PATIENCE = timedelta(days=1)  # for a rank that lives; one that dies is noticed at once


@dataclass(frozen=True)
class World:
    """This process among ``size``. Alone unless ``join`` found others."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """The one that writes tables, draws and prints."""
        return self.rank == 0

    def mine(self, batch: int) -> bool:
        """Batches are dealt in turn, whole: they are the same whatever the number of ranks."""
        return batch % self.size == self.rank

    def wait(self) -> None:
        """Until every rank is here. Raises ``VTCError`` when one has ended, or stays away too long."""
        if self.size == 1:
            return
        import torch.distributed as dist

        try:
            dist.barrier()
        except RuntimeError as error:
            reason = str(error).strip().split("\n")[0][:160]
            raise VTCError(
                f"rank {self.rank}: another rank has ended or is stuck ({reason}); see its message, then start again"
            ) from None


ALONE = World()


def join() -> World:
    """The processes that torchrun started, joined by gloo; with GPUs each takes that of its local rank."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return World()
    import torch
    import torch.distributed as dist

    local = int(os.environ.get("LOCAL_RANK", "0"))
    if torch.cuda.is_available():
        if local >= (count := torch.cuda.device_count()):
            raise VTCError(f"rank {local} of this machine has no GPU, there are {count}; give --nproc_per_node {count}")
        torch.cuda.set_device(local)  # what "cuda" means from here on
    dist.init_process_group("gloo", timeout=PATIENCE)
    return World(dist.get_rank(), size)
