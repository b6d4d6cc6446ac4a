#!/usr/bin/env bash
# What there is to do on a machine with a GPU, by one command from the checkout:
#
#   scripts/gpu_day.sh           the GPU tests, the bench and the scaling figures on the GPU, and the full MAML run on
#                                Omniglot 5w1s: 60,000 steps, its wall time and its test accuracy
#   SMALL=1 scripts/gpu_day.sh   the same on the CPU with everything tiny: does each part work? (a minute or two)
#
# METARUN_DATA names the folder with Omniglot, which is downloaded otherwise. OUT names the folder for the logs, the
# figures and the run. A part that fails does not stop the others; the exit code is 1 if one did.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
OUT=${OUT:-outputs/gpu_day}
SMALL=${SMALL:-0}
mkdir -p "$OUT"
export PYTHONPATH=scripts${PYTHONPATH:+:$PYTHONPATH}
failed=()

part() {  # name, command
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

run=(algo=maml data=omniglot task=5w1s model=conv4 model.width=64 optim=adam train.meta_batch=32 track=local)
if [ "$SMALL" = 1 ]; then
    device=cpu
    tests=(-m "not slow" -k test_gpu)  # they say that they are skipped
    bench=(--quick --only W4-1step,W5-reptile)
    scaling=(--quick)
    run+=(data=glyphs model.width=4 train.steps=20 train.meta_batch=2 eval.every=10 eval.val_episodes=4)
    run+=(eval.test_episodes=6)
else
    device=cuda
    tests=(-m gpu)
    bench=()
    scaling=()
    run+=(train.steps=60000 eval.every=2000 train.save_every=2000 train.log_every=100)
fi

"$PYTHON" -c "
import torch
print('torch', torch.__version__, torch.cuda.get_device_name(0) if torch.cuda.is_available() else 'sees no GPU')
"
part tests "$PYTHON" -m pytest "${tests[@]}" tests/engine/test_gpu.py
part bench "$PYTHON" -m bench --device $device --out "$OUT" "${bench[@]}"
part accuracy "$PYTHON" -m bench accuracy --device $device --out "$OUT" "${bench[@]:0:1}"
part scores "$PYTHON" -m bench scores --device $device --out "$OUT" "${bench[@]:0:1}"
part scaling "$PYTHON" -m bench.scaling --device $device --out "$OUT" "${scaling[@]}"
part run metarun "${run[@]}" device=$device out="$OUT/run"
find "$OUT/run" -name summary.json -exec "$PYTHON" -c "
import json, sys
found = json.load(open(sys.argv[1]))
print(f\"== run: {found['time/total_s']:.0f} s, {found['time/tasks_per_s']:.0f} tasks/s, \"
      f\"test accuracy {100 * found['test/acc']:.2f} % +- {100 * found['test/ci95']:.2f}\")
" {} \;
if [ ${#failed[@]} -gt 0 ]; then
    echo "== failed: ${failed[*]}"
    exit 1
fi
echo "== all done; logs and figures in $OUT"
