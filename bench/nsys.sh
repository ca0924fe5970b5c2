#!/usr/bin/env bash
# Record steps of training with Nsight Systems; see docs/profiling.md for how to read it.
#
#   bench/nsys.sh [--steps A:B] [--ranks N|all] [--report NAME] [--launcher "WORDS"] -- WORDS
#
#   --steps A:B        steps A to B-1, counted from 0 (default 20:30; warm-up lies before)
#   --ranks N|all      the rank to record (default 0); all: every rank in one report
#   --report NAME      NAME.nsys-rep is written (default runs/nsys)
#   --launcher WORDS   for deepspeed, for example "--num_gpus 2"
#   WORDS              what engine/train.py is given: --config ... --data ... --output ...
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
steps=20:30 ranks=0 report=runs/nsys launcher=()
record=(profile -c cudaProfilerApi --capture-range-end=stop -t cuda,nvtx,osrt,cudnn,cublas
  --force-overwrite=true)

fail() {
  echo "error: $1" >&2
  exit 2
}

# a rank started by deepspeed: the one that is asked for runs under nsys, the others as they are
as_rank() {
  local wanted=$1 report=$2
  shift 2
  if [ "${RANK:-0}" = "$wanted" ]; then
    exec nsys "${record[@]}" -o "$report" "$@"
  fi
  exec "$@"
}

if [ "${1:-}" = --as-rank ]; then
  shift
  as_rank "$@"
fi

while [ $# -gt 0 ]; do
  case $1 in
    --steps) steps=${2:?"--steps needs A:B"} ;;
    --ranks) ranks=${2:?"--ranks needs a number or all"} ;;
    --report) report=${2:?"--report needs a name"} ;;
    --launcher) read -r -a launcher <<<"${2:?"--launcher needs words"}" ;;
    --)
      shift
      break
      ;;
    -h | --help)
      sed -n '2,10s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
      exit 0
      ;;
    *) fail "$1: write the words of engine/train.py after --, as in: bench/nsys.sh -- --config" ;;
  esac
  shift 2
done
[[ $steps =~ ^[0-9]+:[0-9]+$ ]] || fail "--steps $steps: write A:B, for example 20:30"
[[ $ranks =~ ^([0-9]+|all)$ ]] || fail "--ranks $ranks: write a number or all"
[ $# -gt 0 ] || fail "nothing to train: write the words of engine/train.py after --"
command -v deepspeed >/dev/null || fail "deepspeed is not on PATH: source .venv/bin/activate first"

train=("$root/engine/train.py" "$@" --profile-steps "$steps")
if ! command -v nsys >/dev/null; then
  cat >&2 <<'TEXT'
nsys is not on PATH. It comes with the CUDA toolkit, or alone as the package nsight-systems-cli of
NVIDIA's repositories. torch's profiler records instead: profile.json in the run's folder, for
https://ui.perfetto.dev, and a table below.
TEXT
  exec deepspeed "${launcher[@]}" "${train[@]}"
fi

mkdir -p "$(dirname "$report")"
if [ "$ranks" = all ]; then
  nsys "${record[@]}" -o "$report" deepspeed "${launcher[@]}" "${train[@]}"
else
  deepspeed "${launcher[@]}" --no_python --no_local_rank \
    "$root/bench/nsys.sh" --as-rank "$ranks" "$report" python "${train[@]}"
fi

nsys stats --force-export=true --report nvtx_sum,cuda_gpu_kern_sum "$report.nsys-rep" || true
cat <<TEXT

Open $report.nsys-rep in Nsight Systems. What to look at, in this order:
  1. the ranges "step N": are they alike, and is the GPU's row full below them?
  2. gaps of the GPU under "data wait": the loader is late; under "host to device": copies wait
  3. "image tower" is most of a step; its longest kernels should be matrix products
  4. "loss forward" and "loss backward" against docs/performance.md
  5. "gradient reduction" on several GPUs: does it lie beside "backward", or after it?
  6. one kernel alone: bench/ncu.sh
TEXT
