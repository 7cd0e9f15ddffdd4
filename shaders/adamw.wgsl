// AdamW with moments of f32. m, v:[len]
// Dispatch: x over floats, 64 a workgroup, in strides.

#include adamw
@group(0) @binding(4) var<storage, read_write> m: array<f32>;
@group(0) @binding(5) var<storage, read_write> v: array<f32>;

@compute @workgroup_size(64)
fn forward(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let step = now();
    let halted = clip[1] == 1.0;
    for (var i = id.x; i < p.len; i += groups.x * 64u) {
        if (!halted) {
            let g = grads[i] * clip[0];
            m[i] = p.beta1 * m[i] + (1.0 - p.beta1) * g;
            v[i] = p.beta2 * v[i] + (1.0 - p.beta2) * g * g;
            move_by(i, step, m[i], v[i]);
        }
        grads[i] = 0.0;
    }
}
