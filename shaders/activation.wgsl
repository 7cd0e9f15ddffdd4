// The MLP's activation f(x) = x·σ(a·(x + b·x³)): SiLU with a = 1, b = 0; GELU's tanh form with a = 2√(2/π), b = 0.044715.
//
// forward:   y = f(g)·u, or f(g) where nothing is gated
// backward:  dg = dy·u·f'(g),  du = dy·f(g), or dg = dy·f'(g) where nothing is gated
// with s = σ(…):   f'(x) = s + x·s·(1 − s)·a·(1 + 3b·x²)
//
// x:[N, g | u] of F columns each, or [N, g]  y, dy:[N,F], F a multiple of 4
// Dispatch: x over groups of 4 floats of y, 64 a workgroup, in strides.
// y is overwritten; backward overwrites g with dg, u with du and dy with y, which the gradients that follow read.

struct Params { n: u32, f: u32, gated: u32, a: f32, b: f32 }
@group(1) @binding(0) var<uniform> p: Params;
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(0) var<storage, read_write> dy: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> dx: array<vec4<f32>>; // x before

fn sigmoid(x: vec4<f32>) -> vec4<f32> {
    return 1.0 / (1.0 + exp(-p.a * (x + p.b * x * x * x)));
}

fn slope(x: vec4<f32>, s: vec4<f32>) -> vec4<f32> {
    return s + x * s * (1.0 - s) * p.a * (1.0 + 3.0 * p.b * x * x);
}

@compute @workgroup_size(64)
fn forward(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let f4 = p.f / 4u;
    for (var i = id.x; i < p.n * f4; i += groups.x * 64u) {
        let at = i / f4 * (f4 << p.gated) + i % f4;
        var v = x[at] * sigmoid(x[at]);
        if (p.gated == 1u) { v *= x[at + f4]; }
        y[i] = v;
    }
}

@compute @workgroup_size(64)
fn backward(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let f4 = p.f / 4u;
    for (var i = id.x; i < p.n * f4; i += groups.x * 64u) {
        let at = i / f4 * (f4 << p.gated) + i % f4;
        let g = dx[at];
        let s = sigmoid(g);
        var d = dy[i];
        var v = g * s;
        if (p.gated == 1u) {
            let u = dx[at + f4];
            dx[at + f4] = d * v;
            v *= u;
            d *= u;
        }
        dx[at] = d * slope(g, s);
        dy[i] = v;
    }
}
