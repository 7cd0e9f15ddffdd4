// RMSNorm with a frozen weight, a workgroup a row.
// Dispatch: one workgroup of 32 a row, in strides: norms of heads have more rows than a dispatch has groups.

#include rmsnorm

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
