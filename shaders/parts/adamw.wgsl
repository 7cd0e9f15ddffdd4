// AdamW with decoupled weight decay, over flat buffers.
//
// forward:  g' = clip·g;  m ← β1·m + (1−β1)·g';  v ← β2·v + (1−β2)·g'²
//           θ ← θ·(1 − lr·λ) − lr/(1−β1^t) · m / (√(v/(1−β2^t)) + eps);  g ← 0
//
// lr is times rates[i] where rated is 1. θ, g, m, v, rates:[len]  clip:[2] = (factor, halted): when halted, only g is zeroed

struct Params { len: u32, beta1: f32, beta2: f32, eps: f32, weight_decay: f32, rated: u32, pad0: u32, pad1: u32 }
@group(1) @binding(0) var<uniform> p: Params;
@group(0) @binding(0) var<storage, read> control: array<u32>;
@group(0) @binding(1) var<storage, read> clip: array<f32>;
@group(0) @binding(2) var<storage, read_write> theta: array<f32>;
@group(0) @binding(3) var<storage, read_write> grads: array<f32>;
@group(0) @binding(6) var<storage, read> rates: array<f32>;

// What is the same for all floats of a step: the learning rate, 1−β1^t, 1−β2^t.
fn now() -> vec3<f32> {
    return vec3<f32>(bitcast<f32>(control[LR]), bitcast<f32>(control[BIAS1]), bitcast<f32>(control[BIAS2]));
}

// Moves θ by its new moments.
fn move_by(i: u32, step: vec3<f32>, m_new: f32, v_new: f32) {
    var lr = step.x;
    if (p.rated == 1u) { lr *= rates[i]; }
    theta[i] = theta[i] * (1.0 - lr * p.weight_decay) - lr / step.y * m_new / (sqrt(v_new / step.z) + p.eps);
}
