// RMSNorm with a frozen weight, a workgroup a row.
//
// forward:   y[n,c] = x[n,c]·s_n·w[c] (+ residual[n,c]),  s_n = 1/√(Σ_c x²/C + eps)
// backward:  dx[n,c] (+)= s_n·(w[c]·dy[n,c] − x[n,c]·s_n²·Σ_j w[j]·dy[n,j]·x[n,j] / C)
//
// x, residual, y, dy, dx:[N,C]  w:[C], C a multiple of 4
// Dispatch: one workgroup of 32 a row, in strides: norms of heads have more rows than a dispatch has groups.
// y is overwritten. accumulate: forward adds the residual, which is not read otherwise; backward adds to dx, which is
// overwritten otherwise.

struct Params { n: u32, c: u32, eps: f32, accumulate: u32 }
@group(1) @binding(0) var<uniform> p: Params;
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> w: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> residual: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> dy: array<vec4<f32>>;
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

@compute @workgroup_size(32)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    for (var row = group.x; row < p.n; row += groups.x) { forward_row(row * (p.c / 4u), id); }
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
        if (p.accumulate == 1u) { v += residual[base + c]; }
        y[base + c] = v;
    }
}

@compute @workgroup_size(32)
fn backward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    for (var row = group.x; row < p.n; row += groups.x) { backward_row(row * (p.c / 4u), id); }
}

fn backward_row(base: u32, id: vec3<u32>) {
    let c4 = p.c / 4u;
    var s = 0.0;
    var a = 0.0;
    for (var c = id.x; c < c4; c += LANES) {
        s += dot(x[base + c], x[base + c]);
        a += dot(x[base + c], w[c] * dy[base + c]);
    }
    squares[id.x] = s;
    along[id.x] = a;
    let both = reduce(id.x);
    let rstd = 1.0 / sqrt(both.x / f32(p.c) + p.eps);
    let pull = rstd * rstd * both.y / f32(p.c);
    for (var c = id.x; c < c4; c += LANES) {
        var v = rstd * (w[c] * dy[base + c] - x[base + c] * pull);
        if (p.accumulate == 1u) { v += dx[base + c]; }
        dx[base + c] = v;
    }
}
