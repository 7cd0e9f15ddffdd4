// Cross-entropy over one chunk of supervised rows; row m of the chunk is row first + m of the micro-batch.
//
// forward:   rows[first+m] = (lse − z[target], 1 if argmax z = target, lse, 0),  lse = log Σ_v exp z[m,v]
// backward:  z[m,v] ← (exp(z[m,v] − lse) − [v = target]) / tokens, times the slope of the cap that z went through, if any
// report:    ring[slot].xy (+)= Σ_{m < rows of the micro-batch} rows[m].xy; starts anew in a window's first micro-batch
//
// z:[M,ld] logits, V used, ld a multiple of 4 (backward zeroes the padding)  targets:[·] or NONE  rows:[·] of 4 floats  ring: slots of 4 floats
// Dispatch: forward and backward one workgroup of THREADS a row; report one workgroup.
// Rows without a target give zeros.

struct Params { m: u32, v: u32, first: u32, ld: u32, cap: f32, pad0: u32, pad1: u32, pad2: u32 }
@group(1) @binding(0) var<uniform> p: Params;
@group(0) @binding(0) var<storage, read> targets: array<u32>;
@group(0) @binding(1) var<storage, read> logits: array<f32>;
@group(0) @binding(2) var<storage, read_write> rows_out: array<vec4<f32>>;

@group(0) @binding(0) var<storage, read> control: array<u32>;
@group(0) @binding(1) var<storage, read> targets_b: array<u32>;
@group(0) @binding(2) var<storage, read> rows_b: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> z: array<f32>;

@group(0) @binding(1) var<storage, read> rows: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> ring: array<f32>;

var<workgroup> tops: array<f32, THREADS>;
var<workgroup> sums: array<f32, THREADS>;
var<workgroup> bests: array<u32, THREADS>;

@compute @workgroup_size(THREADS)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) id: vec3<u32>) {
    let base = group.x * p.ld;
    let row = p.first + group.x;
    let target_id = targets[row];
    var top = -1e30;
    var sum = 0.0;
    var best = 0u;
    if (target_id != NONE) {
        for (var v = id.x; v < p.v; v += THREADS) {
            let z = logits[base + v];
            if (z > top) {
                sum *= exp(top - z);
                top = z;
                best = v;
            }
            sum += exp(z - top);
        }
    }
    tops[id.x] = top;
    sums[id.x] = sum;
    bests[id.x] = best;
    workgroupBarrier();
    if (id.x != 0u) { return; }
    var all = vec4<f32>();
    if (target_id != NONE) {
        for (var i = 1u; i < THREADS; i += 1u) {
            if (tops[i] > top || (tops[i] == top && bests[i] < best)) {
                top = tops[i];
                best = bests[i];
            }
        }
        var total = 0.0;
        for (var i = 0u; i < THREADS; i += 1u) { total += sums[i] * exp(tops[i] - top); }
        let lse = top + log(total);
        all = vec4<f32>(lse - logits[base + target_id], select(0.0, 1.0, best == target_id), lse, 0.0);
    }
    rows_out[row] = all;
}

@compute @workgroup_size(THREADS)
fn backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) id: vec3<u32>) {
    let base = group.x * p.ld;
    let row = p.first + group.x;
    let target_id = targets_b[row];
    let inv = bitcast<f32>(control[INV_TOKENS]);
    let lse = rows_b[row].z;
    for (var v = id.x; v < p.ld; v += THREADS) {
        var d = 0.0;
        if (target_id != NONE && v < p.v) {
            let y = z[base + v];
            d = (exp(y - lse) - select(0.0, 1.0, v == target_id)) * inv * soft_cap_slope(y, p.cap);
        }
        z[base + v] = d;
    }
}

@compute @workgroup_size(THREADS)
fn report(@builtin(local_invocation_id) id: vec3<u32>) {
    var s = vec2<f32>();
    for (var m = id.x; m < control[ROWS]; m += THREADS) { s += rows[m].xy; }
    tops[id.x] = s.x;
    sums[id.x] = s.y;
    workgroupBarrier();
    if (id.x != 0u) { return; }
    var total = vec2<f32>();
    for (var i = 0u; i < THREADS; i += 1u) { total += vec2<f32>(tops[i], sums[i]); }
    let at = control[RING] * REPORT;
    if (control[FIRST] == 0u) { total += vec2<f32>(ring[at], ring[at + 1u]); }
    ring[at] = total.x;
    ring[at + 1u] = total.y;
}
