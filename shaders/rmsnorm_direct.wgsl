// RMSNorm with a frozen weight, barrier-free: an invocation a row.
// Dispatch: one invocation a row, 32 a workgroup.

#include rmsnorm

// The four sums of a vector's places.
fn total(v: vec4<f32>) -> f32 { return (v.x + v.y) + (v.z + v.w); }

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
