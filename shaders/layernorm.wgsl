// LayerNorm with a frozen weight and bias.
//
// forward:   y[n,c] = h[n,c]·w[c] + b[c],  h[n,c] = (x[n,c] − m_n)·s_n,  m_n = Σ_c x/C,  s_n = 1/√(Σ_c (x − m_n)²/C + eps)
// backward:  dx[n,c] (+)= s_n·(g[n,c] − Σ_j g[n,j]/C − h[n,c]·Σ_j g[n,j]·h[n,j]/C),  g[n,c] = w[c]·dy[n,c]
//
// x, y, dy, dx:[N,C]  w, b:[C], C a multiple of 4
// Dispatch: one workgroup of 32 a row.
// y is overwritten; dx is added to with ADD, else overwritten. NORMED: backward leaves forward's y in dy, for gradients
// that come after.

const ADD: u32 = 1u;
const NORMED: u32 = 2u;

struct Params { n: u32, c: u32, eps: f32, flags: u32 }
@group(1) @binding(0) var<uniform> p: Params;
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> w: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> b: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> dy: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> dx: array<vec4<f32>>;

const LANES: u32 = 32u;
var<workgroup> parts: array<vec2<f32>, 32>;
var<workgroup> whole: vec2<f32>;

// The sum over the lanes, in a fixed order, for every lane.
fn sum(lane: u32, part: vec2<f32>) -> vec2<f32> {
    parts[lane] = part;
    workgroupBarrier();
    if (lane == 0u) {
        var s = vec2<f32>();
        for (var i = 0u; i < LANES; i += 1u) { s += parts[i]; }
        whole = s;
    }
    return workgroupUniformLoad(&whole);
}

fn total(v: vec4<f32>) -> f32 { return (v.x + v.y) + (v.z + v.w); }

// Mean and 1/standard deviation of the row at `base`.
fn moments(lane: u32, base: u32) -> vec2<f32> {
    let c4 = p.c / 4u;
    var s = vec4<f32>();
    for (var c = lane; c < c4; c += LANES) { s += x[base + c]; }
    let mean = sum(lane, vec2<f32>(total(s), 0.0)).x / f32(p.c);
    var squares = vec4<f32>();
    for (var c = lane; c < c4; c += LANES) { squares += (x[base + c] - mean) * (x[base + c] - mean); }
    return vec2<f32>(mean, 1.0 / sqrt(sum(lane, vec2<f32>(total(squares), 0.0)).x / f32(p.c) + p.eps));
}

@compute @workgroup_size(32)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) id: vec3<u32>) {
    let c4 = p.c / 4u;
    let base = group.x * c4;
    let m = moments(id.x, base);
    for (var c = id.x; c < c4; c += LANES) { y[base + c] = (x[base + c] - m.x) * m.y * w[c] + b[c]; }
}

@compute @workgroup_size(32)
fn backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) id: vec3<u32>) {
    let c4 = p.c / 4u;
    let base = group.x * c4;
    let m = moments(id.x, base);
    var sums = vec2<f32>();
    for (var c = id.x; c < c4; c += LANES) {
        let g = w[c] * dy[base + c];
        sums += vec2<f32>(total(g), dot(g, (x[base + c] - m.x) * m.y));
    }
    let means = sum(id.x, sums) / f32(p.c);
    for (var c = id.x; c < c4; c += LANES) {
        var v = m.y * (w[c] * dy[base + c] - means.x - (x[base + c] - m.x) * m.y * means.y);
        if ((p.flags & ADD) != 0u) { v += dx[base + c]; }
        dx[base + c] = v;
        if ((p.flags & NORMED) != 0u) { dy[base + c] = (x[base + c] - m.x) * m.y * w[c] + b[c]; }
    }
}
