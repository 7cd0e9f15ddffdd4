// The global gradient norm, the clip factor, and the halt on a number that is not finite.
//
// partial:  out[g] = Σ x[i]² over the 4096 floats from g·4096
// finish:   norm = √Σ out;  clip = (min(1, max_norm / (norm + 1e-6)), halted);  ring[slot].zw = (norm, applied)
//           halted is set by a loss or norm that is not finite and stays set; then the factor is 0
//
// x:[len]  out:[partials]  ring: slots of 4 floats  clip:[2]
// Dispatch: partial one workgroup of 64 a partial, finish one workgroup. max_norm 0 means no clipping.

struct Params { len: u32, partials: u32, max_norm: f32, pad: u32 }
@group(1) @binding(0) var<uniform> p: Params;
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> out: array<f32>;

@group(0) @binding(0) var<storage, read> control: array<u32>;
@group(0) @binding(1) var<storage, read> partials: array<f32>;
@group(0) @binding(2) var<storage, read_write> ring: array<f32>;
@group(0) @binding(3) var<storage, read_write> clip: array<f32>;

const LANES: u32 = 64u;
const CHUNK: u32 = 4096u;
var<workgroup> sums: array<f32, 64>;

fn total(lane: u32, mine: f32) -> f32 {
    sums[lane] = mine;
    workgroupBarrier();
    var s = 0.0;
    if (lane == 0u) {
        for (var i = 0u; i < LANES; i += 1u) { s += sums[i]; }
    }
    return s;
}

@compute @workgroup_size(64)
fn partial(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) id: vec3<u32>) {
    let end = min(p.len, (group.x + 1u) * CHUNK);
    var s = 0.0;
    for (var i = group.x * CHUNK + id.x; i < end; i += LANES) { s += x[i] * x[i]; }
    let all = total(id.x, s);
    if (id.x == 0u) { out[group.x] = all; }
}

@compute @workgroup_size(64)
fn finish(@builtin(local_invocation_id) id: vec3<u32>) {
    var s = 0.0;
    for (var i = id.x; i < p.partials; i += LANES) { s += partials[i]; }
    let norm = sqrt(total(id.x, s));
    if (id.x != 0u) { return; }
    let at = control[RING] * REPORT;
    let halted = clip[1] == 1.0 || !finite(norm) || !finite(ring[at]);
    var factor = 1.0;
    if (p.max_norm > 0.0) { factor = min(1.0, p.max_norm / (norm + 1e-6)); }
    clip[0] = select(factor, 0.0, halted);
    clip[1] = select(0.0, 1.0, halted);
    ring[at + 2u] = norm;
    ring[at + 3u] = select(1.0, 0.0, halted);
}
