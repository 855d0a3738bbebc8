"""Trains the checkpoints that ship with vtc.eval.scenes: draws the pictures, trains, exports, measures.

OMP_NUM_THREADS=2 python scripts/train_scenes.py --minutes 90          # everything, from nothing
OMP_NUM_THREADS=2 python scripts/train_scenes.py --kind qwen           # a second kind of model, to check on
OMP_NUM_THREADS=2 python scripts/train_scenes.py --kind llava-deep --seed 1 --out runs/scenes-deep  # a third
python scripts/train_scenes.py --resume                                # goes on after a stop
python scripts/train_scenes.py --measure                               # accuracy on the test seeds
python scripts/train_scenes.py --after-layer 2                         # the price of a cut inside the decoder
"""

import argparse
import tempfile
from pathlib import Path


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = ("llava", "llava-deep", "llava-deeper", "qwen")
    parser.add_argument("--kind", choices=kinds, default="llava", help="of model (default llava)")
    parser.add_argument("--minutes", type=float, default=90, help="wall-clock budget of both stages (default 90)")
    parser.add_argument("--tower-share", type=float, default=0.2, help="share of it for the tower (default 0.2)")
    parser.add_argument("--pictures", type=int, default=40_000, help="training pictures of each stage")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of the weights it starts from (default 0)")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "vtc-scenes", help="scratch folder")
    parser.add_argument("--out", type=Path, help="where the checkpoint goes (default: into the package)")
    parser.add_argument("--resume", action="store_true", help="go on from the scratch folder")
    parser.add_argument("--measure", action="store_true", help="only measure the checkpoint on the test seeds")
    parser.add_argument("--after-layer", type=int, metavar="K", help="only measure random cuts after decoder layer K")
    parser.add_argument("--questions", type=int, default=3600, help="questions to measure with (default 3600)")
    parser.add_argument("--dev-questions", type=int, default=405, help="of an evaluation while it trains (default 405)")
    return parser.parse_args()


def train(args: argparse.Namespace, out: Path) -> None:
    """Both stages, then the export."""
    import torch

    from vtc.eval.scenes.train.architectures import registry
    from vtc.eval.scenes.train.model import parameter_count
    from vtc.eval.scenes.train.pictures import prepare
    from vtc.eval.scenes.train.stage1 import train_tower

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    kind = registry[args.kind]()
    model = kind.build()
    print(f"{kind.name} {parameter_count(model):.3f}M parameters, tower {parameter_count(kind.tower(model)):.3f}M")
    pictures = prepare(args.work / "tower", 0, args.pictures)
    print(f"{len(pictures)} pictures for the tower")
    tower_minutes = args.minutes * args.tower_share
    train_tower(kind, model, pictures, tower_minutes, args.work / f"{kind.name}-tower.pt", args.resume)

    from vtc.eval.scenes.train.stage2 import train_decoder

    pictures = prepare(args.work / "decoder", args.pictures, args.pictures)
    print(f"{len(pictures)} pictures for the decoder")
    state = args.work / f"{kind.name}-decoder.pt"
    train_decoder(kind, model, pictures, args.minutes - tower_minutes, state, args.resume, out, args.dev_questions)


def main() -> None:
    """Trains and measures, or only measures."""
    from vtc.eval.scenes import checkpoint_path

    args = arguments()
    out = args.out or checkpoint_path(args.kind)
    only_measure = args.measure or args.after_layer is not None
    if not only_measure:
        train(args, out)

    from vtc.eval.scenes.train.measure import measure, measure_cuts

    if args.after_layer is None:
        measure(out, args.questions)
    if not only_measure or args.after_layer is not None:
        measure_cuts(out, args.after_layer or 2, args.questions)


if __name__ == "__main__":
    main()
