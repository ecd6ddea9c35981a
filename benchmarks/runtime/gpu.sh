#!/usr/bin/env bash
# Everything about the runtime that needs one GPU, in at most 8 minutes; prints one Markdown result.
#
#   bash benchmarks/runtime/gpu.sh [TRACE] > result.md
#
# TRACE is the folder of a trace with router weights; default: examples/traces. PYTHON names the Python, default: python.
# Each step has a time of its own, at whose end it is stopped and the next one begins. DEVICE=cpu runs the same steps on a CPU,
# small, to see that the script runs: its times say nothing.
#
# Exit code: 0 all steps ran; 1 one failed or was stopped; 77 none failed, but some were skipped (no GPU, no Triton).
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1
trace=${1:-examples/traces}
python=${PYTHON:-python}
device=${DEVICE:-cuda}
export PYTHONPATH="$PWD:$PWD/api${PYTHONPATH:+:$PYTHONPATH}" GLOO_SOCKET_IFNAME=lo OMP_NUM_THREADS=1
if [ ! -f "$trace/trace.json" ]; then
    echo "gpu.sh: $trace has no trace.json; give the folder of a trace" >&2
    exit 2
fi

gpu=$("$python" -c 'import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else "")' 2>/dev/null)
skipped=0 failed=0 rows=""

step() { # name, seconds, whether it needs a GPU, command...
    local name=$1 seconds=$2 needs=$3 begin state code
    shift 3
    begin=$(date +%s)
    printf '\n## %s\n\n`%s`\n\n' "$name" "$*"
    if [ "$needs" = gpu ] && { [ "$device" != cuda ] || [ -z "$gpu" ]; }; then
        state="skipped: no GPU"
        skipped=1
        echo "skipped: no GPU"
    else
        timeout --kill-after=5 "$seconds" "$@" 2>&1
        code=$?
        case $code in
            0) state=ran ;;
            77) state="skipped, as it says" skipped=1 ;;
            124 | 137) state="stopped after $seconds s" failed=1 ;;
            *) state="failed with code $code" failed=1 ;;
        esac
    fi
    rows+="| $name | $state | $(($(date +%s) - begin)) | $seconds |"$'\n'
}

echo "# The runtime on one GPU"
echo
echo "$(date -u +%F), ${gpu:-no GPU}, commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown), trace $trace"
if [ "$device" = cuda ] && command -v nvidia-smi >/dev/null; then
    nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv,noheader
fi
needs=$([ "$device" = cuda ] && echo gpu || echo no)
few=$([ "$device" = cuda ] && echo 31 || echo 2)
tests="tests/runtime/test_hot_path.py tests/runtime/test_devices.py tests/runtime/test_static.py"
tests+=" tests/runtime/test_graph.py tests/runtime/test_graph_layers.py tests/runtime/test_choice_on_device.py"
tests+=" tests/runtime/test_kernels.py"
# shellcheck disable=SC2086 # several words
step "Tests that need a GPU" 140 "$needs" "$python" -m pytest -rs -p no:cacheprovider $tests
step "Dispatch and combine, one rank on NCCL" 25 gpu "$python" benchmarks/runtime/overhead.py \
    --device cuda --ranks 1 --rounds "$few"
step "Dispatch and combine by symmetric memory, one rank" 20 gpu "$python" benchmarks/runtime/overhead.py \
    --device cuda --ranks 1 --rounds "$few" --transport symm-mem
step "Dispatch and combine, four processes on this GPU, on gloo through the host" 50 "$needs" \
    "$python" benchmarks/runtime/overhead.py --device "$device" --backend gloo --ranks 4 --rounds "$few"
step "A shared expert beside the dispatch, four processes on this GPU" 35 "$needs" \
    "$python" benchmarks/runtime/overhead.py --overlap --device "$device" --backend gloo --ranks 4 --rounds "$few"
step "Slowest rank by policy and gamma" 105 "$needs" "$python" benchmarks/runtime/straggler.py "$trace" \
    --device "$device" --rounds "$few" --tokens "$([ "$device" = cuda ] && echo 4096 || echo 256)" \
    --hidden "$([ "$device" = cuda ] && echo 2880 || echo 64)" \
    --intermediate "$([ "$device" = cuda ] && echo 2880 || echo 64)"
step "Kernels beside torch" 50 "$needs" "$python" benchmarks/runtime/kernels.py --device "$device" --rounds "$few" \
    --tokens $([ "$device" = cuda ] && echo 64 1024 8192 || echo 8)

printf '\n## Steps\n\n| step | what became of it | seconds | at most |\n|---|---|---|---|\n%s' "$rows"
[ "$failed" = 0 ] || exit 1
[ "$skipped" = 0 ] || exit 77
