#!/usr/bin/env bash
# Every run behind a paper's table: one model, fixed benchmarks, methods, budgets and seeds.
set -euo pipefail

usage() {
    cat <<'TEXT'
scripts/reproduce.sh MODEL [OUTPUT]

MODEL    a model folder, or a model id of the hub
OUTPUT   where the runs go (default: runs/reproduce); the same command goes on where an interrupted one stopped

  OUTPUT/accuracy   every method at every budget on every benchmark: table.md over all, table.tex and plots in each run
  OUTPUT/cost       the same cells on 32 questions of the first benchmark, prefills timed in turns with the unpatched model

Environment:
  BENCHMARKS  comma separated; default: twelve public ones (the testbed's own model: scenes)
  DATA_DIR    a folder with the files of each benchmark in a folder of its name; default: the hub
  LIMIT       only the first so many questions of each benchmark: a smoke test, never a table
  PROCESSES   processes of the accuracy runs, a GPU each (default: 1)
  BATCH       questions at once (default: 8); part of a run's settings, so keep it
  PYTHON      the interpreter (default: the checkout's .venv, made by `make setup`)

Smoke test:  LIMIT=9 scripts/reproduce.sh vtc/eval/scenes/checkpoint runs/smoke
TEXT
}

fail() {
    echo "reproduce.sh: $1" >&2
    exit 2
}

PUBLIC=gqa,mmbench,mme,pope,scienceqa,textvqa,seedbench,mmmu,vizwiz,chartqa,docvqa,ocrbench # vqav2: 214,354 questions
# Baselines (three draws of random), inside the decoder, at its input, the best of those with share, ours.
METHODS=random,random:seed=1,random:seed=2,grid,pool
METHODS+=,fastv,pyramiddrop,sparsevlm
METHODS+=,visionzip,prumerge_plus,fastervlm,vispruner,hiprune,holov,vscan,dart,divprune,cdpruner,scope
METHODS+=,visionzip+share,divprune+share,cdpruner+share,scope+share,adaptive
# A third, two ninths, a ninth, half a ninth: 192, 128, 64, 32 of 576 tokens; 960, 640, 320, 160 of 2,880.
BUDGETS=33.34%,22.23%,11.12%,5.56%
SEED=0

[[ ${1:-} == -h || ${1:-} == --help ]] && usage && exit 0
[[ $# -eq 1 || $# -eq 2 ]] || { usage >&2 && exit 2; }
model=$1 output=${2:-runs/reproduce}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
[[ $model -ef $root/vtc/eval/scenes/checkpoint ]] && PUBLIC=scenes # it knows the testbed's words only
benchmarks=${BENCHMARKS:-$PUBLIC}

for number in LIMIT PROCESSES BATCH; do
    [[ -z ${!number:-} || ${!number} =~ ^[1-9][0-9]*$ ]] || fail "$number=${!number} is not a whole number of at least 1"
done
[[ -z ${DATA_DIR:-} || -d $DATA_DIR ]] || fail "DATA_DIR=$DATA_DIR is no folder; make it, or leave it out for the hub"
command -v "$python" >/dev/null || fail "no interpreter at $python; run make setup, or set PYTHON"
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
"$python" - "$benchmarks" <<'CHECK' || exit 2
import sys

from vtc.errors import UnknownName
from vtc.eval.benchmarks import registry

try:
    for name in sys.argv[1].split(","):
        registry[name]
except UnknownName as error:
    sys.exit(f"reproduce.sh: BENCHMARKS: {error}")
CHECK

evaluate() { # FOLDER OPTIONS...
    echo "== $1"
    "${launcher[@]}" -m vtc.cli eval --model "$model" --methods "$METHODS" --budgets "$BUDGETS" --seed "$SEED" \
        --batch-size "${BATCH:-8}" --output "$@"
}

status=0
launcher=("$python")
[[ ${PROCESSES:-1} == 1 ]] || launcher+=(-m torch.distributed.run --standalone --nproc_per_node "$PROCESSES")
data=(${DATA_DIR:+--data-dir "$DATA_DIR"})
evaluate "$output/accuracy" --benchmarks "$benchmarks" "${data[@]}" ${LIMIT:+--limit "$LIMIT"} --timing-repeats 0 || status=$?
# 1 and a table: some samples failed, which it counts.
((status == 0)) || [[ $status == 1 && -f $output/accuracy/table.md ]] || exit $status

launcher=("$python")
first=${benchmarks%%,*}
[[ -z ${DATA_DIR:-} || $first == "$benchmarks" ]] || data=(--data-dir "$DATA_DIR/$first") # as vtc eval looks for them
evaluate "$output/cost" --benchmarks "$first" "${data[@]}" --limit "${LIMIT:-32}" --overlays 0 || status=$?

echo "== accuracy: $output/accuracy/table.md   cost: $output/cost/table.md"
exit $status
