#!/bin/bash
# Ten minutes on a GPU: bash tests/gpu.sh FOLDER. First the tests that need one, then speeds, then a training for the rest.
# FOLDER holds at any moment what is known so far, in eight files of at most 15 MB: log.txt, the run's three tables, best.pt
# and the checkpoint in up to three parts (cat checkpoint.pt.* > RUN/checkpoint.pt, beside config.json from its log).
# Without a GPU it can be rehearsed: DEVICE=cpu TOTAL=120 FLAGS="--config quick --steps 3000 ..." bash tests/gpu.sh FOLDER
set -u
unset OMP_NUM_THREADS
out=$(realpath -m "${1:?name a folder for what comes out}")
cd "$(dirname "$0")/.." || exit
device=${DEVICE:-cuda} python=${PYTHON:-python3} total=${TOTAL:-590} flags=${FLAGS:---game Breakout --num-envs 32}
run=$(mktemp -d)/run
mkdir -p "$out"
export PYTHONUNBUFFERED=1
exec > >(tee -a "$out/log.txt") 2>&1

left() { echo $((total - SECONDS)); }

limited() { # PERCENT OF THE WHOLE TIME, COMMAND ...
    local limit=$((total * $1 / 100))
    shift
    echo "== $* (at most $limit s, $(left) s left)"
    timeout -k 5 "$limit" "$@"
    echo "exit status $?"
}

keep() { # what is worth keeping of the training
    cp "$run"/{games,evaluations,training}.csv "$run/best.pt" "$out" 2>/dev/null
    [ -f "$run/checkpoint.pt" ] && split -b 15m "$run/checkpoint.pt" "$out/checkpoint.pt."
}

limited 15 "$python" -m pytest -q -rs -m gpu tests # the graphs against the eager path, and against a CPU
limited 10 "$python" benchmark.py --device "$device" parts
for environments in 64 128; do
    limited 7 "$python" benchmark.py --device "$device" parts --num-envs $environments --replay-size $((environments * 4000))
done
echo "== training, $(left) s left"
# shellcheck disable=SC2086  # flags are words
timeout -s TERM -k 20 "$(($(left) - 25))" "$python" q_agent_train.py --device "$device" $flags --run-dir "$run" \
    --checkpoint-minutes 1 --save-every-games 0 | tr '\r' '\n' | grep -v '^$' &
training=$!
while kill -0 $training 2>/dev/null && [ "$(left)" -gt 25 ]; do
    sleep 15
    keep
done
wait $training
cat "$run/config.json"
keep
echo "== ended after $SECONDS s"
