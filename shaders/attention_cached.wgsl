// Attention over a KV cache, for generation: an invocation a row and head.
// Dispatch: append x over groups of 4 floats, forward x over (row, head); 64 a workgroup, in strides.

#include attention_cached
@group(0) @binding(2) var<storage, read> v_in: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> keys: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> values: array<vec4<f32>>;

@compute @workgroup_size(64)
fn append(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let width = p.kv_heads * HEAD_DIM_4;
    for (var i = id.x; i < p.n * width; i += groups.x * 64u) {
        let slot = slots[i / width];
        if (slot.x == NONE) { continue; }
        let at = (slot.x * p.capacity + slot.y) * width + i % width;
        let k_in = (i / width * (p.heads + 2u * p.kv_heads) + p.heads) * HEAD_DIM_4 + i % width;
        keys[at] = qk[k_in];
        values[at] = v_in[k_in + width];
    }
}

@compute @workgroup_size(64)
fn forward(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var r = id.x; r < p.n * p.heads; r += groups.x * 64u) {
        let slot = slots[r / p.heads];
        let g = r % p.heads / (p.heads / p.kv_heads);
        let at_q = (r / p.heads * (p.heads + 2u * p.kv_heads) + r % p.heads) * HEAD_DIM_4;
        var mine: array<vec4<f32>, HEAD_DIM_4>;
        var acc: array<vec4<f32>, HEAD_DIM_4>;
        for (var i = 0u; i < HEAD_DIM_4; i += 1u) {
            mine[i] = qk[at_q + i] * p.scale;
            acc[i] = vec4<f32>();
        }
        var top = -1e30;
        var sum = 0.0;
        let end = select(slot.y + 1u, 0u, slot.x == NONE);
        for (var j = end - min(end, p.window); j < end; j += 1u) {
            let key = ((slot.x * p.capacity + j) * p.kv_heads + g) * HEAD_DIM_4;
            var s = 0.0;
            for (var i = 0u; i < HEAD_DIM_4; i += 1u) { s += dot(mine[i], k[key + i]); }
            s = soft_cap(s, p.cap);
            let higher = max(top, s);
            let shrink = exp(top - higher);
            let w = exp(s - higher);
            sum = sum * shrink + w;
            top = higher;
            for (var i = 0u; i < HEAD_DIM_4; i += 1u) { acc[i] = acc[i] * shrink + w * v[key + i]; }
        }
        let inv = select(1.0 / sum, 0.0, end == 0u);
        for (var i = 0u; i < HEAD_DIM_4; i += 1u) { o[r * HEAD_DIM_4 + i] = acc[i] * inv; }
    }
}
