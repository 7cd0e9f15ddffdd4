// Soft cap of logits, in place. Its backward pass is part of cross_entropy's, which overwrites the logits.
//
// forward:  z ← cap·tanh(z/cap)
//
// z of `len` floats
// Dispatch: x over floats, 64 a workgroup, in strides.

struct Params { len: u32, cap: f32, pad0: u32, pad1: u32 }
@group(1) @binding(0) var<uniform> p: Params;
@group(0) @binding(0) var<storage, read_write> z: array<f32>;

@compute @workgroup_size(64)
fn forward(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < p.len; i += groups.x * 64u) { z[i] = soft_cap(z[i], p.cap); }
}
