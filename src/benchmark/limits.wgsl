// What a device can do at most: a copy of long vectors, and multiply-adds that no memory delays.
//
// copy:  y ← x
// fma:   y ← Σ_k c_k, eight chains c_k ← c_k·x + x of `rounds` links, begun at k/8
//
// x, y of `len` groups of four floats
// Dispatch: x over groups, 64 a workgroup, in strides.

struct Params { len: u32, rounds: u32, pad0: u32, pad1: u32 }
@group(1) @binding(0) var<uniform> p: Params;
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> y: array<vec4<f32>>;

@compute @workgroup_size(64)
fn copy(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < p.len; i += groups.x * 64u) { y[i] = x[i]; }
}

@compute @workgroup_size(64)
fn chains(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < p.len; i += groups.x * 64u) {
        let v = x[i];
        var c0 = vec4<f32>(0.0);
        var c1 = vec4<f32>(0.125);
        var c2 = vec4<f32>(0.25);
        var c3 = vec4<f32>(0.375);
        var c4 = vec4<f32>(0.5);
        var c5 = vec4<f32>(0.625);
        var c6 = vec4<f32>(0.75);
        var c7 = vec4<f32>(0.875);
        for (var r = 0u; r < p.rounds; r += 1u) {
            c0 = fma(c0, v, v);
            c1 = fma(c1, v, v);
            c2 = fma(c2, v, v);
            c3 = fma(c3, v, v);
            c4 = fma(c4, v, v);
            c5 = fma(c5, v, v);
            c6 = fma(c6, v, v);
            c7 = fma(c7, v, v);
        }
        y[i] = c0 + c1 + c2 + c3 + c4 + c5 + c6 + c7;
    }
}
