#!/usr/bin/env bash
# Does all that needs a GPU, by one command from the checkout:
#
#   scripts/gpu_day.sh           the GPU tests; make bench and bench.scaling on the GPU; MAML on Omniglot 5w1s for 60,000
#                                steps, with its time and test accuracy; two ranks on NCCL, where there are two GPUs
#   SMALL=1 scripts/gpu_day.sh   the same parts on the CPU with tiny networks, to see that each part works (minutes)
#
# PYTHON: the interpreter (.venv/bin/python). METARUN_DATA: the folder that has Omniglot; without it, it is downloaded.
# OUT: the folder for logs, figures and runs (outputs/gpu_day). If a part fails, the others still run, and the exit code
# is 1.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
OUT=${OUT:-outputs/gpu_day}
SMALL=${SMALL:-0}
mkdir -p "$OUT"
export PYTHONPATH=src:scripts${PYTHONPATH:+:$PYTHONPATH}
failed=()

part() {  # part NAME COMMAND...: runs the command, logs it to $OUT/NAME.log, notes a failure
    local name=$1 start=$SECONDS
    shift
    echo "== $name: $*"
    if "$@" > >(tee "$OUT/$name.log") 2>&1; then
        echo "== $name: done in $((SECONDS - start)) s"
    else
        echo "== $name: failed (exit $?) after $((SECONDS - start)) s; see $OUT/$name.log"
        failed+=("$name")
    fi
}

metarun() { "$PYTHON" -m metarun "$@"; }

show_results() {  # show_results NAME: time and test accuracy of the runs in $OUT/NAME
    find "$OUT/$1" -name summary.json -exec "$PYTHON" -c "
import json, sys
summary = json.load(open(sys.argv[1]))
print(f\"== $1: {summary['time/total_s']:.0f} s, {summary['time/tasks_per_s']:.0f} tasks/s, \"
      f\"test accuracy {100 * summary['test/acc']:.2f} % +- {100 * summary['test/ci95']:.2f}\")
" {} \;
}

common=(algo=maml task=5w1s model=conv4 optim=adam track=local)
tiny=(data=glyphs model.width=4 train.steps=20 train.meta_batch=2 eval.every=10 eval.val_episodes=4)
tiny+=(eval.test_episodes=6)
if [ "$SMALL" = 1 ]; then
    device=cpu
    tests=(-m "not slow" -k test_gpu)  # without a GPU they are skipped, and say so
    bench=(--quick --only W4-1step,W5-reptile)
    quick=(--quick)
    run=("${tiny[@]}")
else
    device=cuda
    tests=(-m gpu)
    bench=()
    quick=()
    run=(data=omniglot model.width=64 train.meta_batch=32 train.steps=60000 eval.every=2000)
    run+=(train.save_every=2000 train.log_every=100)
fi

"$PYTHON" -c "
import torch
print('torch', torch.__version__, torch.cuda.get_device_name(0) if torch.cuda.is_available() else 'sees no GPU')
"
part tests "$PYTHON" -m pytest "${tests[@]}" tests/engine/test_gpu.py
part bench "$PYTHON" -m bench --device $device --out "$OUT" "${bench[@]}"
part accuracy "$PYTHON" -m bench accuracy --device $device --out "$OUT" "${quick[@]}"
part scores "$PYTHON" -m bench scores --device $device --out "$OUT" "${quick[@]}"
part scaling "$PYTHON" -m bench.scaling --device $device --out "$OUT" "${quick[@]}"
part run metarun "${common[@]}" "${run[@]}" device=$device out="$OUT/run"
show_results run
if [ $device = cpu ] || "$PYTHON" -c "import sys, torch; sys.exit(torch.cuda.device_count() < 2)"; then
    for devices in 1 $device:2; do  # the accuracies must agree: tasks and gradients do not depend on the number of ranks
        name=ranks_${devices#*:}
        part $name metarun "${common[@]}" "${tiny[@]}" device=$device devices=$devices out="$OUT/$name"
        show_results $name
    done
else
    echo "== ranks: left out, torch sees fewer than two GPUs"
fi
if [ ${#failed[@]} -gt 0 ]; then
    echo "== failed: ${failed[*]}"
    exit 1
fi
echo "== all done; logs, figures and runs in $OUT"
