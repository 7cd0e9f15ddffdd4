// Attention over a KV cache, for generation: a workgroup a row and head, which share out its positions.
// Dispatch: x over (row, head), one a workgroup, in strides.

#include attention_cached

const LOWEST: f32 = -1e30;
const LANES: u32 = 64u;
const CHUNK: u32 = 256u;
// Of the values, an invocation adds up COLUMNS fours, at the positions of one of PARTS.
const PARTS: u32 = max(LANES / HEAD_DIM_4, 1u);
const COLUMNS: u32 = (HEAD_DIM_4 + LANES - 1u) / LANES;

var<workgroup> weights: array<f32, CHUNK>;
var<workgroup> highs: array<f32, LANES>;
var<workgroup> higher: array<f32, 8>;
var<workgroup> sums: array<vec4<f32>, LANES>;

// The largest x of all lanes.
fn largest(lane: u32, x: f32) -> f32 {
    highs[lane] = x;
    workgroupBarrier();
    if (lane < 8u) {
        var m = LOWEST;
        for (var i = 0u; i < 8u; i += 1u) { m = max(m, highs[lane * 8u + i]); }
        higher[lane] = m;
    }
    workgroupBarrier();
    var m = LOWEST;
    for (var i = 0u; i < 8u; i += 1u) { m = max(m, higher[i]); }
    return m;
}

// Sums of lanes: `count` of them, `stride` apart.
fn total(from_lane: u32, stride: u32, count: u32) -> vec4<f32> {
    var s = vec4<f32>();
    for (var i = 0u; i < count; i += 1u) { s += sums[from_lane + i * stride]; }
    return s;
}

@compute @workgroup_size(64)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    for (var r = group.x; r < p.n * p.heads; r += groups.x) { attend(r, lane); }
}

fn attend(r: u32, lane: u32) {
    let slot = slots[r / p.heads];
    let g = r % p.heads / (p.heads / p.kv_heads);
    let end = select(slot.y + 1u, 0u, slot.x == NONE);
    let part = lane / HEAD_DIM_4;
    let width = p.kv_heads * HEAD_DIM_4;
    let at_q = (r / p.heads * (p.heads + 2u * p.kv_heads) + r % p.heads) * HEAD_DIM_4;
    let base = slot.x * p.capacity * width + g * HEAD_DIM_4;
    var mine: array<vec4<f32>, HEAD_DIM_4>;
    for (var i = 0u; i < HEAD_DIM_4; i += 1u) { mine[i] = qk[at_q + i] * p.scale; }
    var acc: array<vec4<f32>, COLUMNS>;
    var top = LOWEST;
    var sum = 0.0;
    for (var j0 = end - min(end, p.window); j0 < end; j0 += CHUNK) {
        let len = min(end - j0, CHUNK);
        var highest = LOWEST;
        for (var j = lane; j < len; j += LANES) {
            let key = base + (j0 + j) * width;
            var s = 0.0;
            for (var i = 0u; i < HEAD_DIM_4; i += 1u) { s += dot(mine[i], k[key + i]); }
            s = soft_cap(s, p.cap);
            weights[j] = s;
            highest = max(highest, s);
        }
        let now = max(top, largest(lane, highest));
        let shrink = exp(top - now);
        top = now;
        sum *= shrink;
        for (var j = lane; j < len; j += LANES) {
            let w = exp(weights[j] - top);
            weights[j] = w;
            sum += w;
        }
        workgroupBarrier();
        for (var c = 0u; c < COLUMNS; c += 1u) {
            let four = c * LANES + lane % HEAD_DIM_4;
            acc[c] *= shrink;
            if (part < PARTS && four < HEAD_DIM_4) {
                for (var j = part; j < len; j += PARTS) { acc[c] += weights[j] * v[base + (j0 + j) * width + four]; }
            }
        }
        workgroupBarrier();
    }
    sums[lane] = vec4<f32>(sum);
    workgroupBarrier();
    let inv = select(1.0 / total(0u, 1u, LANES).x, 0.0, end == 0u);
    for (var c = 0u; c < COLUMNS; c += 1u) {
        workgroupBarrier();
        sums[lane] = acc[c];
        workgroupBarrier();
        let four = c * LANES + lane;
        if (four < HEAD_DIM_4) { o[r * HEAD_DIM_4 + four] = total(lane, HEAD_DIM_4, PARTS) * inv; }
    }
    workgroupBarrier(); // the next row's scores go to the same lanes
}
