#!/usr/bin/env bash
# Everything that a machine with a large GPU can tell, within one visit: benches/gpu.sh FOLDER [MINUTES]
#
# First whether every kernel is right there (all shaders, against their twins), then the table, in f32 and with halves, then
# PyTorch + PEFT on the same card. FOLDER gets report.json (all of it), the tables and the logs of the parts.
#
# The machine may have no network and no compiler: these programs are then built elsewhere and brought along.
#   LUTHIER_BENCH   the program of `cargo bench --bench luthier-bench --no-run`
#   LUTHIER_OPS     the program of `cargo test --test ops --no-run`
#   PEER_PYTHON     a Python with torch, transformers and peft (python3)
#   BENCH_DEVICE    gpu; a software driver is taken, too, where there is no other
#   BENCH_CASES     only these cases, each a line; without it all that the time allows
set -u
cd "$(dirname "$0")/.." || exit 1
out=${1:?usage: benches/gpu.sh FOLDER [MINUTES]}
minutes=${2:-8.5}
mkdir -p "$out" || exit 1
out=$(cd "$out" && pwd)
python=${PEER_PYTHON:-python3}
started=$(date +%s)
failed=0

# Seconds that are left, less those in $1.
left() { awk -v m="$minutes" -v s="$started" -v now="$(date +%s)" -v less="${1:-0}" \
    'BEGIN { t = m * 60 - (now - s) - less; print (t > 1) ? int(t) : 1 }'; }

# The last program that a cargo command built, by the line "Executable ... (PATH)".
build() { "$@" 2>&1 | tee -a "$out/build.log" | sed -n 's/^ *Executable.*(\(.*\))$/\1/p' | tail -n 1; }

# The driver's description, where the loader does not find it by itself.
find_driver() {
    [ -n "${VK_DRIVER_FILES:-}${VK_ICD_FILENAMES:-}" ] && return
    for folder in /usr/share /usr/local/share /etc /usr/local/nvidia/share; do
        [ -e "$folder/vulkan/icd.d/nvidia_icd.json" ] && { export VK_DRIVER_FILES="$folder/vulkan/icd.d/nvidia_icd.json"; return; }
    done
}

# What the machine is, for whoever reads the table.
describe() {
    echo "== machine"; uname -srm; grep -m 1 'model name' /proc/cpuinfo; nproc
    command -v nvidia-smi > /dev/null && nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv
    echo "== Vulkan"; ldconfig -p 2> /dev/null | grep libvulkan || echo "no libvulkan: the loader is missing"
    echo "VK_DRIVER_FILES=${VK_DRIVER_FILES:-} VK_ICD_FILENAMES=${VK_ICD_FILENAMES:-}"
}

# Gibibytes that a run may take: nine tenths of the card's, where it is known.
card_memory() {
    command -v nvidia-smi > /dev/null || return
    nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits | head -n 1 |
        awk '{ printf "--memory-gib %.1f", 0.9 * $1 / 1024 }'
}

parity() {
    echo "== parity of kernels"
    # Half the time at most: a slow device still gets a table.
    REQUIRE_GPU=1 timeout "$(left $((${minutes%.*} * 30)))" "$ops" > "$out/parity.log" 2>&1
    local code=$?
    grep -E '^test result|^test .*FAILED|panicked|^SKIPPED' "$out/parity.log" | sort | uniq -c
    [ $code -eq 0 ] || { echo "PARITY FAILED ($code): see parity.log"; failed=1; }
}

# table NAME SHARE OPTION...: a table of the cases, in this part of the time that is left, into NAME.json and NAME.md.
table() {
    local name=$1 share=$2 budget
    shift 2
    echo "== $name"
    # PyTorch gets its share first of what is left: without it the figures have nothing to stand beside.
    budget=$(awk -v s="$(left "$torch_seconds")" -v part="$share" 'BEGIN { print s * part / 60 }')
    # shellcheck disable=SC2046 # no options or two words
    timeout "$(left 5)" "$bench" --device "${BENCH_DEVICE:-gpu}" --budget "$budget" $(card_memory) --json "$out/$name.json" \
        "$@" 2> "$out/$name.log" | tee "$out/$name.md"
    [ "${PIPESTATUS[0]}" -eq 0 ] || { echo "THE TABLE HAS FAILURES: see $name.log"; failed=1; }
}

tables() {
    local cases=()
    [ -n "${BENCH_CASES:-}" ] && mapfile -t cases <<< "$BENCH_CASES"
    table table 0.6 ${cases[@]+"${cases[@]}"}
    # What products do with halves, on matrix units where there are any: only they change.
    [ -n "${BENCH_CASES:-}" ] || cases=("kernels matmul" "steps smollm2" "steps llama" "steps qwen")
    if ! "$bench" --device "${BENCH_DEVICE:-gpu}" --fp16 --list > /dev/null 2> "$out/table-fp16.log"; then
        echo "== table-fp16: not run: $(grep -m 1 '^error' "$out/table-fp16.log")"
        return
    fi
    table table-fp16 0.9 --fp16 "${cases[@]}"
}

pytorch() {
    echo "== PyTorch + PEFT"
    if [ "$torch_seconds" -eq 0 ]; then echo "not run: $python has no torch, transformers and peft"; return; fi
    : > "$out/pytorch.jsonl"
    timeout "$(left 5)" "$python" benches/peers/pytorch/bench.py --device auto --steps 10 \
        > "$out/pytorch.jsonl" 2> "$out/pytorch.log" || echo "PyTorch did not come to its end: see pytorch.log"
    cat "$out/pytorch.jsonl"
}

# One document of the parts, written aside first. Lines of JSON become a list without any program but awk.
report() {
    {
        printf '{\n"failed": %s' "$failed"
        for name in table table-fp16; do
            printf ',\n"%s": ' "$name"
            [ -s "$out/$name.json" ] && cat "$out/$name.json" || printf 'null\n'
        done
        printf ',\n"pytorch": ['
        [ -s "$out/pytorch.jsonl" ] && awk 'NR > 1 { print "," } { print }' "$out/pytorch.jsonl"
        printf ']\n}\n'
    } > "$out/report.json.tmp" && mv "$out/report.json.tmp" "$out/report.json"
}

# Which shaders were measured to be fastest, beside the figures.
export LUTHIER_CACHE="$out/cache"
find_driver
describe | tee "$out/machine.txt"
bench=${LUTHIER_BENCH:-$(build cargo bench --offline --bench luthier-bench --no-run)}
ops=${LUTHIER_OPS:-$(build cargo test --offline --test ops --no-run)}
for program in "$bench" "$ops"; do
    [ -x "$program" ] || { echo "error: no program '$program': see $out/build.log, or name LUTHIER_BENCH and LUTHIER_OPS"; exit 1; }
done
torch_seconds=0
"$python" -c 'import torch, transformers, peft' 2> /dev/null && torch_seconds=90
parity
tables
pytorch
report
echo "== done in $(($(date +%s) - started)) s: $out/report.json, $out/table.md, $out/table-fp16.md"
exit "$failed"
