// AdamW whose moments are kept in 8 bits, by blocks of 256 floats.
//
// forward:  m, v ← M[code], V[code] times the block's largest;  m, v, θ, g as in adamw
//           largest ← max |m|, max |v| of the block;  code ← that of the value nearest to m / largest, v / largest,
//           but of v nothing above 0 is rounded to 0
//
// θ, g, rates:[len], and control, clip and rates as in adamw. maps:[2·256]: the values M, then V, ascending.
// m, v: 65 words a block: 64 of four codes, the first in the lowest byte, then the bits of the largest magnitude.
// Behind the last float a block goes on with zeros. Words of 0 are moments of 0. Of two values as near: the lower.
// Dispatch: x over floats, one workgroup of 64 a block, in strides. When halted, only g is zeroed.

#include adamw
@group(0) @binding(4) var<storage, read_write> m: array<u32>;
@group(0) @binding(5) var<storage, read_write> v: array<u32>;
@group(0) @binding(7) var<storage, read> maps: array<f32>;

const LANES: u32 = 64u;
const BLOCK: u32 = 256u;
const BLOCK_WORDS: u32 = 65u;
const CODES: u32 = 256u;
// The smallest normal number: 1 / x may be infinite below it.
const SMALLEST: f32 = 1.17549435e-38;
var<workgroup> peaks: array<vec2<f32>, 64>;
var<workgroup> peak: vec2<f32>;

fn unpack(word: u32, map: u32) -> vec4<f32> {
    let at = vec4<u32>(map) + ((vec4<u32>(word) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(255u));
    return vec4<f32>(maps[at.x], maps[at.y], maps[at.z], maps[at.w]);
}

fn code(x: f32, map: u32) -> u32 {
    var at = 0u;
    for (var step = 128u; step > 0u; step >>= 1u) {
        if (maps[map + at + step] <= x) { at += step; }
    }
    if (at + 1u < CODES && x > (maps[map + at] + maps[map + at + 1u]) * 0.5) { at += 1u; }
    return at;
}

fn pack(codes: vec4<u32>) -> u32 {
    return codes.x | (codes.y << 8u) | (codes.z << 16u) | (codes.w << 24u);
}

fn encode(x: vec4<f32>, largest: f32, map: u32) -> vec4<u32> {
    var scale = 0.0;
    if (largest >= SMALLEST) { scale = 1.0 / largest; }
    let y = x * scale;
    return vec4<u32>(code(y.x, map), code(y.y, map), code(y.z, map), code(y.w, map));
}

fn highest(x: vec4<f32>) -> f32 { return max(max(abs(x.x), abs(x.y)), max(abs(x.z), abs(x.w))); }

// The largest magnitudes among all lanes' values.
fn largest(lane: u32, m_new: vec4<f32>, v_new: vec4<f32>) -> vec2<f32> {
    peaks[lane] = vec2<f32>(highest(m_new), highest(v_new));
    workgroupBarrier();
    if (lane == 0u) {
        var most = vec2<f32>();
        for (var i = 0u; i < LANES; i += 1u) { most = max(most, peaks[i]); }
        peak = most;
    }
    return workgroupUniformLoad(&peak);
}

// Takes four gradients: clipped, and zeroed where they were. Behind the last float they are zeros.
fn take(first: u32) -> vec4<f32> {
    var g = vec4<f32>();
    for (var k = 0u; k < 4u && first + k < p.len; k += 1u) {
        g[k] = grads[first + k] * clip[0];
        grads[first + k] = 0.0;
    }
    return g;
}

@compute @workgroup_size(64)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    let lane = id.x;
    let step = now();
    let halted = clip[1] == 1.0;
    for (var block = group.x; block * BLOCK < p.len; block += groups.x) {
        let first = block * BLOCK + lane * 4u;
        let g = take(first);
        if (halted) { continue; }
        let at = block * BLOCK_WORDS + lane;
        let top = block * BLOCK_WORDS + LANES;
        let m_new = p.beta1 * (unpack(m[at], 0u) * bitcast<f32>(m[top])) + (1.0 - p.beta1) * g;
        let v_new = p.beta2 * (unpack(v[at], CODES) * bitcast<f32>(v[top])) + (1.0 - p.beta2) * g * g;
        for (var k = 0u; k < 4u && first + k < p.len; k += 1u) { move_by(first + k, step, m_new[k], v_new[k]); }
        // After its barriers every lane has read the old magnitudes.
        let most = largest(lane, m_new, v_new);
        m[at] = pack(encode(m_new, most.x, 0u));
        v[at] = pack(max(encode(v_new, most.y, CODES), vec4<u32>(v_new > vec4<f32>())));
        if (lane == 0u) {
            m[top] = bitcast<u32>(most.x);
            v[top] = bitcast<u32>(most.y);
        }
    }
}
