// SwiGLU.
//
// forward:   y = g·σ(g)·u
// backward:  dg = dy·u·σ(g)·(1 + g·(1 − σ(g))),  du = dy·g·σ(g)
//
// all of `len` floats, a multiple of 4
// Dispatch: x over groups of 4 floats, 64 a workgroup, in strides.
// y is overwritten; backward overwrites gate with dg and up with du.

struct Params { len: u32, pad0: u32, pad1: u32, pad2: u32 }
@group(1) @binding(0) var<uniform> p: Params;
@group(0) @binding(0) var<storage, read> gate: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> up: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(0) var<storage, read> dy: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> gate_dg: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> up_du: array<vec4<f32>>;

@compute @workgroup_size(64)
fn forward(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < p.len / 4u; i += groups.x * 64u) {
        let g = gate[i];
        y[i] = g / (1.0 + exp(-g)) * up[i];
    }
}

@compute @workgroup_size(64)
fn backward(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < p.len / 4u; i += groups.x * 64u) {
        let g = gate_dg[i];
        let u = up_du[i];
        let s = 1.0 / (1.0 + exp(-g));
        gate_dg[i] = dy[i] * u * s * (1.0 + g * (1.0 - s));
        up_du[i] = dy[i] * g * s;
    }
}
