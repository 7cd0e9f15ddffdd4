// The MLP's activation f(x) = x·σ(a·(x + b·x³)): SiLU with a = 1, b = 0; GELU's tanh form with a = 2√(2/π), b = 0.044715.
//
// forward:         y = f(g)·u
// backward:        dg = dy·u·f'(g),  du = dy·f(g)
// forward_plain:   y = f(g)
// backward_plain:  dg = dy·f'(g)
// with s = σ(…):   f'(x) = s + x·s·(1 − s)·a·(1 + 3b·x²)
//
// all of `len` floats, a multiple of 4
// Dispatch: x over groups of 4 floats, 64 a workgroup, in strides.
// y is overwritten; the backward passes overwrite gate with dg and up with du.

struct Params { len: u32, a: f32, b: f32, pad: u32 }
@group(1) @binding(0) var<uniform> p: Params;
@group(0) @binding(0) var<storage, read> gate: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> up: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> y_plain: array<vec4<f32>>;
@group(0) @binding(0) var<storage, read> dy: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> gate_dg: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> up_du: array<vec4<f32>>;

fn sigmoid(x: vec4<f32>) -> vec4<f32> {
    return 1.0 / (1.0 + exp(-p.a * (x + p.b * x * x * x)));
}

fn slope(x: vec4<f32>, s: vec4<f32>) -> vec4<f32> {
    return s + x * s * (1.0 - s) * p.a * (1.0 + 3.0 * p.b * x * x);
}

@compute @workgroup_size(64)
fn forward(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < p.len / 4u; i += groups.x * 64u) { y[i] = gate[i] * sigmoid(gate[i]) * up[i]; }
}

@compute @workgroup_size(64)
fn backward(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < p.len / 4u; i += groups.x * 64u) {
        let g = gate_dg[i];
        let s = sigmoid(g);
        gate_dg[i] = dy[i] * up_du[i] * slope(g, s);
        up_du[i] = dy[i] * g * s;
    }
}

@compute @workgroup_size(64)
fn forward_plain(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < p.len / 4u; i += groups.x * 64u) { y_plain[i] = gate[i] * sigmoid(gate[i]); }
}

@compute @workgroup_size(64)
fn backward_plain(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < p.len / 4u; i += groups.x * 64u) {
        let g = gate_dg[i];
        gate_dg[i] = dy[i] * slope(g, sigmoid(g));
    }
}
