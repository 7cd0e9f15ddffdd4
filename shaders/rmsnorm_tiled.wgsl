// RMSNorm with a frozen weight, a workgroup a row.
//
// forward:   y[n,c] = x[n,c]·s_n·w[c] (+ residual[n,c]),  s_n = 1/√(Σ_c x²/C + eps)
// backward:  dx[n,c] (+)= s_n·(w[c]·dy[n,c] − x[n,c]·s_n²·Σ_j w[j]·dy[n,j]·x[n,j] / C)
//
// x, residual, y, dy, dx:[N,C], or with heads: row n is head n mod heads, at col of the floats from n/heads·ld on
// w:[C]; C, ld and col are multiples of 4
// Dispatch: one workgroup of 32 a row, in strides: norms of heads have more rows than a dispatch has groups.
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

const LANES: u32 = 32u;
var<workgroup> squares: array<f32, 32>;
var<workgroup> along: array<f32, 32>;
var<workgroup> sums: vec2<f32>;

// Adds up both arrays in a fixed order and hands the sums to every lane.
fn reduce(lane: u32) -> vec2<f32> {
    workgroupBarrier();
    if (lane == 0u) {
        var s = vec2<f32>();
        for (var i = 0u; i < LANES; i += 1u) { s += vec2<f32>(squares[i], along[i]); }
        sums = s;
    }
    return workgroupUniformLoad(&sums);
}

// Where row n begins.
fn place(n: u32) -> u32 { return (n / p.heads * p.ld + p.col + n % p.heads * p.c) / 4u; }

@compute @workgroup_size(32)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    for (var row = group.x; row < p.n; row += groups.x) { forward_row(place(row), id); }
}

fn forward_row(base: u32, id: vec3<u32>) {
    let c4 = p.c / 4u;
    var s = 0.0;
    for (var c = id.x; c < c4; c += LANES) { s += dot(x[base + c], x[base + c]); }
    squares[id.x] = s;
    along[id.x] = 0.0;
    let rstd = 1.0 / sqrt(reduce(id.x).x / f32(p.c) + p.eps);
    for (var c = id.x; c < c4; c += LANES) {
        var v = x[base + c] * rstd * w[c];
        if ((p.flags & ADD) != 0u) { v += residual[base + c]; }
        y[base + c] = v;
    }
}

// s_n, and how much of x the gradient of the row at `base` loses.
fn slopes(base: u32, lane: u32) -> vec2<f32> {
    var s = 0.0;
    var a = 0.0;
    for (var c = lane; c < p.c / 4u; c += LANES) {
        s += dot(x[base + c], x[base + c]);
        a += dot(x[base + c], w[c] * dy[base + c]);
    }
    squares[lane] = s;
    along[lane] = a;
    let both = reduce(lane);
    let rstd = 1.0 / sqrt(both.x / f32(p.c) + p.eps);
    return vec2<f32>(rstd, rstd * rstd * both.y / f32(p.c));
}

@compute @workgroup_size(32)
fn backward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    for (var row = group.x; row < p.n; row += groups.x) {
        let base = place(row);
        let s = slopes(base, id.x);
        for (var c = id.x; c < p.c / 4u; c += LANES) {
            var v = s.x * (w[c] * dy[base + c] - x[base + c] * s.y);
            if ((p.flags & ADD) != 0u) { v += dx[base + c]; }
            dx[base + c] = v;
            if ((p.flags & NORMED) != 0u) { dy[base + c] = x[base + c] * s.x * w[c]; }
        }
    }
}

@compute @workgroup_size(32)
fn backward_in_place(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    for (var row = group.x; row < p.n; row += groups.x) {
        let base = place(row);
        let s = slopes(base, id.x);
        for (var c = id.x; c < p.c / 4u; c += LANES) {
            dy[base + c] = s.x * (w[c] * dy[base + c] - x[base + c] * s.y);
        }
    }
}
