#!/bin/bash
# Half an hour on a GPU, in phases: bash tests/gpu.sh FOLDER [PHASE ...]; by default all. What a phase prints is a file
# of its name in FOLDER. The training is a process of its own, which outlives this command and saves every 2 minutes.
# Without a GPU it can be rehearsed: DEVICE=cpu SECONDS_EACH=0.1 TRAIN_SECONDS=60 FLAGS="..." bash tests/gpu.sh FOLDER
set -u
unset OMP_NUM_THREADS
out=$(realpath -m "${1:?name a folder for what comes out}")
shift
cd "$(dirname "$0")/.." || exit
device=${DEVICE:-cuda} python=${PYTHON:-python3} seconds=${SECONDS_EACH:-5} train_seconds=${TRAIN_SECONDS:-1080}
flags=${FLAGS:---game Breakout}
measure="$python benchmark.py --device $device"
mkdir -p "$out"

phase() { # NAME SECONDS COMMAND ...
    local file="$out/$1.txt" limit=$2
    shift 2
    timeout -k 10 "$limit" "$@" >"$file" 2>&1
    echo "exit status $?" >>"$file"
    tail -n 2 "$file"
}

for name in ${*:-tests parts contiguous compare scaling training}; do
    echo "== $name"
    case $name in
    tests) phase tests 180 "$python" -m pytest -q -rs -m gpu tests ;; # the graphs against the eager path, and against a CPU
    parts) phase parts 120 $measure parts ;;
    contiguous) # the other memory layout, in a copy: which is faster on a GPU is not known (pytorch#44943)
        rm -rf "$out/copy" && mkdir "$out/copy" && cp -r ./*.py benchmarks configs data machine showing "$out/copy"
        sed -i 's/^MEMORY_FORMAT = .*/MEMORY_FORMAT = torch.contiguous_format/' "$out/copy/model.py"
        (cd "$out/copy" && phase contiguous 120 $measure parts)
        rm -rf "$out/copy"
        ;;
    compare) phase compare 180 $measure compare --rounds 2 --seconds "$seconds" ;;
    scaling) phase scaling 300 $measure scaling --rounds 1 --seconds "$seconds" --json "$out/scaling.json" ;;
    training)
        setsid nohup timeout -s TERM "$train_seconds" "$python" q_agent_train.py --device "$device" $flags \
            --run-dir "$out/run" --checkpoint-minutes 2 --save-every-games 0 >"$out/training.txt" 2>&1 &
        echo "it runs on: $out/training.txt"
        ;;
    *) echo "no phase $name" >&2 && exit 2 ;;
    esac
done
