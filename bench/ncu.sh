#!/usr/bin/env bash
# Look into one kernel of one benchmark with Nsight Compute.
#
#   bench/ncu.sh loss --impl NAME --batch B --kernel REGEX [--count N] [--report NAME] [-- WORDS]
#
#   --impl NAME      of `python -m bench.loss --help`, for example triton
#   --batch B        patients
#   --kernel REGEX   of the kernel's name, for example online_sums_kernel
#   --count N        launches of it to look into (default 1)
#   --report NAME    NAME.ncu-rep is written (default runs/ncu)
#   WORDS            more words of bench.loss, for example --dtype bfloat16
set -euo pipefail

impl="" batch="" kernel="" count=1 report=runs/ncu
python=python

fail() {
  echo "error: $1" >&2
  exit 2
}

if [ "${1:-}" = -h ] || [ "${1:-}" = --help ]; then
  sed -n '2,11s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
  exit 0
fi
[ "${1:-}" = loss ] || fail "${1:-nothing}: write loss, the benchmark that can be looked into"
shift
while [ $# -gt 0 ]; do
  case $1 in
    --impl) impl=${2:?"--impl needs a name"} ;;
    --batch) batch=${2:?"--batch needs a number"} ;;
    --kernel) kernel=${2:?"--kernel needs a regular expression"} ;;
    --count) count=${2:?"--count needs a number"} ;;
    --report) report=${2:?"--report needs a name"} ;;
    --)
      shift
      break
      ;;
    *) fail "$1: known are --impl, --batch, --kernel, --count, --report, and -- before the rest" ;;
  esac
  shift 2
done
[ -n "$impl" ] && [ -n "$batch" ] && [ -n "$kernel" ] || fail "give --impl, --batch and --kernel"
[[ $batch =~ ^[0-9]+$ ]] || fail "--batch $batch: write a number of patients"

cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ ! -x .venv/bin/python ] || python=.venv/bin/python
case_words=(-m bench.loss --only "$impl" --sizes "$batch" "$@")

instead() {
  echo "torch's profiler instead, which needs no counters:" >&2
  rm -f "${log:-}"
  exec "$python" "${case_words[@]}" --once torch
}

if ! command -v ncu >/dev/null; then
  cat >&2 <<'TEXT'
ncu is not on PATH. It comes with the CUDA toolkit, or alone as the package nsight-compute of
NVIDIA's repositories.
TEXT
  instead
fi

mkdir -p "$(dirname "$report")"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
ncu --profile-from-start off --target-processes all -k "regex:$kernel" -c "$count" --set full \
  -f -o "$report" "$python" "${case_words[@]}" --once nsight 2>&1 | tee "$log" || status=$?
if grep -q ERR_NVGPUCTRPERM "$log"; then
  cat >&2 <<'TEXT'
This machine keeps the GPU's counters for its administrator. One of these lets you read them:
  - sudo, or in a container the capability SYS_ADMIN (docker run --cap-add=SYS_ADMIN)
  - for every user, by the administrator: the line
      options nvidia NVreg_RestrictProfilingToAdminUsers=0
    in a file of /etc/modprobe.d, then a restart
TEXT
  instead
fi
[ "$status" = 0 ] || fail "ncu ended with status $status"
if grep -q "No kernels were profiled" "$log"; then
  fail "no kernel is called like $kernel: \`--once torch\` of bench.loss lists the names"
fi

ncu --import "$report.ncu-rep" --page details --print-summary per-kernel || true
cat <<TEXT

Open $report.ncu-rep in Nsight Compute. What to look at, in this order:
  1. Speed Of Light: what is nearer to its ceiling, compute or memory? Below 60% for both: latency
  2. Compute Workload Analysis: the tensor pipe should be the busiest one of the loss
  3. Memory Workload Analysis: L2 hit rate; traffic to local memory means registers are spilled
  4. Occupancy: what limits it, registers or shared memory (bench.tune seeks other tiles)
  5. Warp State: long scoreboard is waiting for memory, barrier is waves that wait for each other
TEXT
