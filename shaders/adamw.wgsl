// AdamW with decoupled weight decay, over flat buffers.
//
// forward:  g' = clip·g;  m ← β1·m + (1−β1)·g';  v ← β2·v + (1−β2)·g'²
//           θ ← θ·(1 − lr·λ) − lr/(1−β1^t) · m / (√(v/(1−β2^t)) + eps);  g ← 0
//
// lr is times rates[i] where rated is 1. θ, g, m, v, rates:[len]  clip:[2] = (factor, halted): when halted, only g is zeroed
// Dispatch: x over floats, 64 a workgroup, in strides.

struct Params { len: u32, beta1: f32, beta2: f32, eps: f32, weight_decay: f32, rated: u32, pad0: u32, pad1: u32 }
@group(1) @binding(0) var<uniform> p: Params;
@group(0) @binding(0) var<storage, read> control: array<u32>;
@group(0) @binding(1) var<storage, read> clip: array<f32>;
@group(0) @binding(2) var<storage, read_write> theta: array<f32>;
@group(0) @binding(3) var<storage, read_write> grads: array<f32>;
@group(0) @binding(4) var<storage, read_write> m: array<f32>;
@group(0) @binding(5) var<storage, read_write> v: array<f32>;
@group(0) @binding(6) var<storage, read> rates: array<f32>;

@compute @workgroup_size(64)
fn forward(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let base_lr = bitcast<f32>(control[LR]);
    let bias1 = bitcast<f32>(control[BIAS1]);
    let bias2 = bitcast<f32>(control[BIAS2]);
    let halted = clip[1] == 1.0;
    for (var i = id.x; i < p.len; i += groups.x * 64u) {
        if (!halted) {
            var lr = base_lr;
            if (p.rated == 1u) { lr *= rates[i]; }
            let g = grads[i] * clip[0];
            m[i] = p.beta1 * m[i] + (1.0 - p.beta1) * g;
            v[i] = p.beta2 * v[i] + (1.0 - p.beta2) * g * g;
            theta[i] = theta[i] * (1.0 - lr * p.weight_decay) - lr / bias1 * m[i] / (sqrt(v[i] / bias2) + p.eps);
        }
        grads[i] = 0.0;
    }
}
