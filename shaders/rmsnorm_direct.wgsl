// RMSNorm with a frozen weight, barrier-free: an invocation a row.
//
// forward:   y[n,c] = x[n,c]·s_n·w[c] (+ residual[n,c]),  s_n = 1/√(Σ_c x²/C + eps)
// backward:  dx[n,c] (+)= s_n·(w[c]·dy[n,c] − x[n,c]·s_n²·Σ_j w[j]·dy[n,j]·x[n,j] / C)
//
// x, residual, y, dy, dx:[N,C], or with heads: row n is head n mod heads, at col of the floats from n/heads·ld on
// w:[C]; C, ld and col are multiples of 4
// Dispatch: one invocation a row, 32 a workgroup.
// y is overwritten. ADD: forward adds the residual, which is not read otherwise; backward adds to dx, which is overwritten
// otherwise. NORMED: backward leaves forward's y in dy, for gradients that come after. backward_in_place overwrites dy
// with dx.

const ADD: u32 = 1u;
const NORMED: u32 = 2u;

struct Params { n: u32, c: u32, eps: f32, flags: u32, heads: u32, ld: u32, col: u32 }
@group(1) @binding(0) var<uniform> p: Params;
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> w: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> residual: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> dy: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> dx: array<vec4<f32>>;

// The four sums of a vector's places.
fn total(v: vec4<f32>) -> f32 { return (v.x + v.y) + (v.z + v.w); }

// Where row n begins.
fn place(n: u32) -> u32 { return (n / p.heads * p.ld + p.col + n % p.heads * p.c) / 4u; }

@compute @workgroup_size(32)
fn forward(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x >= p.n) { return; }
    let c4 = p.c / 4u;
    let base = place(id.x);
    var s = vec4<f32>();
    for (var c = 0u; c < c4; c += 1u) { s += x[base + c] * x[base + c]; }
    let rstd = 1.0 / sqrt(total(s) / f32(p.c) + p.eps);
    for (var c = 0u; c < c4; c += 1u) {
        var v = x[base + c] * rstd * w[c];
        if ((p.flags & ADD) != 0u) { v += residual[base + c]; }
        y[base + c] = v;
    }
}

// s_n, and how much of x the gradient of the row at `base` loses.
fn slopes(base: u32) -> vec2<f32> {
    var s = vec4<f32>();
    var a = vec4<f32>();
    for (var c = 0u; c < p.c / 4u; c += 1u) {
        s += x[base + c] * x[base + c];
        a += x[base + c] * (w[c] * dy[base + c]);
    }
    let rstd = 1.0 / sqrt(total(s) / f32(p.c) + p.eps);
    return vec2<f32>(rstd, rstd * rstd * total(a) / f32(p.c));
}

@compute @workgroup_size(32)
fn backward(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x >= p.n) { return; }
    let base = place(id.x);
    let s = slopes(base);
    for (var c = 0u; c < p.c / 4u; c += 1u) {
        var v = s.x * (w[c] * dy[base + c] - x[base + c] * s.y);
        if ((p.flags & ADD) != 0u) { v += dx[base + c]; }
        dx[base + c] = v;
        if ((p.flags & NORMED) != 0u) { dy[base + c] = x[base + c] * s.x * w[c]; }
    }
}

@compute @workgroup_size(32)
fn backward_in_place(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x >= p.n) { return; }
    let base = place(id.x);
    let s = slopes(base);
    for (var c = 0u; c < p.c / 4u; c += 1u) {
        dy[base + c] = s.x * (w[c] * dy[base + c] - x[base + c] * s.y);
    }
}
