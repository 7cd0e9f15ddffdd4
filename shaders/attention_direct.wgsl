// Causal attention over packed documents, grouped kv heads (g = h·G/H), online softmax, scores never stored: barrier-free,
// two rows an invocation, for software drivers, where loads cost most and registers are memory.
//
// forward:   o[n,h] = Σ_j p_nj·v[j,g],  p_nj = exp(s_nj − lse[n,h]),  s_nj = cap(scale·q[n,h]·k[j,g])
// delta:     facts[n,h] = (lse[n,h], δ[n,h], first, end),  δ[n,h] = o[n,h]·do[n,h]
// backward:  dq[n,h] = scale·Σ_j ds_nj·k[j,g],  ds_nj = p_nj·(do[n,h]·v[j,g] − δ[n,h])·cap'
//            dv[j,g] = Σ_h Σ_n p_nj·do[n,h],  dk[j,g] = scale·Σ_h Σ_n ds_nj·q[n,h]
// over the j that n sees: n's document up to n, and of that the nearest `window` rows
//
// cap(s) = cap·tanh(s/cap), or s where cap is 0; cap' is its slope
// qkv, dqkv:[N, H + 2G, D], the heads of q, then of k, then of v (qk: the first two; v: the last)
// o, do:[N,H,D]  lse:[N,H]  facts:[N,H]  D a multiple of 4
// spans:[N] of (first row, one past the last row) of n's document; documents are runs of rows, so neither ever falls.
// Dispatch: x over rows, 64 a workgroup of 32; y over heads, in backward over heads for dq and then kv heads for dk and dv;
// delta one invocation a (row, head), 64 a workgroup, in strides. HEAD_DIM_4 = D/4 is prepended.
// One invocation owns two neighbouring rows of one head; every output is overwritten.

struct Params { n: u32, heads: u32, kv_heads: u32, d: u32, scale: f32, cap: f32, window: u32, pad: u32 }
@group(1) @binding(0) var<uniform> p: Params;
@group(0) @binding(0) var<storage, read> spans: array<vec2<u32>>;
@group(0) @binding(1) var<storage, read> qk: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> v: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> o: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> lse_out: array<f32>;

@group(0) @binding(1) var<storage, read> o_in: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> do_in: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> lse: array<f32>;
@group(0) @binding(4) var<storage, read_write> facts_out: array<vec4<f32>>;

@group(0) @binding(0) var<storage, read> facts: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> d_o: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> dqkv: array<vec4<f32>>;

const LOWEST: f32 = -1e30;

// Where a head's q, k and v begin.
fn q_at(n: u32, h: u32) -> u32 { return (n * (p.heads + 2u * p.kv_heads) + h) * HEAD_DIM_4; }
fn k_at(j: u32, g: u32) -> u32 { return (j * (p.heads + 2u * p.kv_heads) + p.heads + g) * HEAD_DIM_4; }
fn v_at(j: u32, g: u32) -> u32 { return (j * (p.heads + 2u * p.kv_heads) + p.heads + p.kv_heads + g) * HEAD_DIM_4; }

// The first row that row n sees, and one past the last row that sees row j.
fn first(n: u32) -> u32 { return max(spans[n].x, n + 1u - min(n + 1u, p.window)); }
fn end(j: u32) -> u32 { return j + min(spans[j].y - j, p.window); }

@compute @workgroup_size(32)
fn forward(@builtin(global_invocation_id) id: vec3<u32>) {
    let n0 = id.x * 2u;
    if (n0 >= p.n) { return; }
    let n1 = min(n0 + 1u, p.n - 1u);
    let h = id.y;
    let g = h / (p.heads / p.kv_heads);
    let at0 = (n0 * p.heads + h) * HEAD_DIM_4;
    let at1 = (n1 * p.heads + h) * HEAD_DIM_4;
    let q0 = q_at(n0, h);
    let q1 = q_at(n1, h);
    var mine0: array<vec4<f32>, HEAD_DIM_4>;
    var mine1: array<vec4<f32>, HEAD_DIM_4>;
    var acc0: array<vec4<f32>, HEAD_DIM_4>;
    var acc1: array<vec4<f32>, HEAD_DIM_4>;
    for (var i = 0u; i < HEAD_DIM_4; i += 1u) {
        mine0[i] = qk[q0 + i] * p.scale;
        mine1[i] = qk[q1 + i] * p.scale;
        acc0[i] = vec4<f32>();
        acc1[i] = vec4<f32>();
    }
    let to_value = p.kv_heads * HEAD_DIM_4; // from a key to its value
    var top = vec2<f32>(LOWEST);
    var sum = vec2<f32>();
    let lo1 = first(n1);
    for (var j = first(n0); j <= n1; j += 4u) {
        let k0 = k_at(j, g);
        let k1 = k_at(min(j + 1u, n1), g);
        let k2 = k_at(min(j + 2u, n1), g);
        let k3 = k_at(min(j + 3u, n1), g);
        var s0 = vec4<f32>();
        var s1 = vec4<f32>();
        for (var i = 0u; i < HEAD_DIM_4; i += 1u) {
            let a = mine0[i];
            let b = mine1[i];
            let x0 = qk[k0 + i]; let x1 = qk[k1 + i]; let x2 = qk[k2 + i]; let x3 = qk[k3 + i];
            s0 += vec4<f32>(dot(a, x0), dot(a, x1), dot(a, x2), dot(a, x3));
            s1 += vec4<f32>(dot(b, x0), dot(b, x1), dot(b, x2), dot(b, x3));
        }
        if (p.cap != 0.0) {
            s0 = vec4<f32>(soft_cap(s0.x, p.cap), soft_cap(s0.y, p.cap), soft_cap(s0.z, p.cap), soft_cap(s0.w, p.cap));
            s1 = vec4<f32>(soft_cap(s1.x, p.cap), soft_cap(s1.y, p.cap), soft_cap(s1.z, p.cap), soft_cap(s1.w, p.cap));
        }
        let js = vec4<u32>(j, j + 1u, j + 2u, j + 3u);
        s0 = select(vec4<f32>(LOWEST), s0, js <= vec4<u32>(n0));
        s1 = select(vec4<f32>(LOWEST), s1, (js <= vec4<u32>(n1)) & (js >= vec4<u32>(lo1)));
        let higher = max(top, vec2<f32>(max(max(s0.x, s0.y), max(s0.z, s0.w)), max(max(s1.x, s1.y), max(s1.z, s1.w))));
        let shrink = exp(top - higher);
        let w0 = exp(s0 - higher.x);
        let w1 = exp(s1 - higher.y);
        sum = sum * shrink + vec2<f32>(w0.x + w0.y + w0.z + w0.w, w1.x + w1.y + w1.z + w1.w);
        top = higher;
        for (var i = 0u; i < HEAD_DIM_4; i += 1u) {
            let c = to_value + i;
            let x0 = v[k0 + c]; let x1 = v[k1 + c]; let x2 = v[k2 + c]; let x3 = v[k3 + c];
            acc0[i] = acc0[i] * shrink.x + (w0.x * x0 + w0.y * x1 + w0.z * x2 + w0.w * x3);
            acc1[i] = acc1[i] * shrink.y + (w1.x * x0 + w1.y * x1 + w1.z * x2 + w1.w * x3);
        }
    }
    for (var i = 0u; i < HEAD_DIM_4; i += 1u) { o[at0 + i] = acc0[i] / sum.x; }
    lse_out[n0 * p.heads + h] = top.x + log(sum.x);
    for (var i = 0u; i < HEAD_DIM_4; i += 1u) { o[at1 + i] = acc1[i] / sum.y; }
    lse_out[n1 * p.heads + h] = top.y + log(sum.y);
}

@compute @workgroup_size(64)
fn delta(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let d4 = p.d / 4u;
    for (var i = id.x; i < p.n * p.heads; i += groups.x * 64u) {
        var s = 0.0;
        for (var c = 0u; c < d4; c += 1u) { s += dot(o_in[i * d4 + c], do_in[i * d4 + c]); }
        let n = i / p.heads;
        facts_out[i] = vec4<f32>(lse[i], s, f32(first(n)), f32(end(n)));
    }
}

@compute @workgroup_size(32)
fn backward(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x * 2u >= p.n) { return; }
    if (id.y < p.heads) { by_query(id.x * 2u, id.y); } else { by_key(id.x * 2u, id.y - p.heads); }
}

fn by_query(n0: u32, h: u32) {
    let n1 = min(n0 + 1u, p.n - 1u);
    let g = h / (p.heads / p.kv_heads);
    let at0 = (n0 * p.heads + h) * HEAD_DIM_4;
    let at1 = (n1 * p.heads + h) * HEAD_DIM_4;
    let q0 = q_at(n0, h);
    let q1 = q_at(n1, h);
    var mine0: array<vec4<f32>, HEAD_DIM_4>;
    var mine1: array<vec4<f32>, HEAD_DIM_4>;
    var given0: array<vec4<f32>, HEAD_DIM_4>;
    var given1: array<vec4<f32>, HEAD_DIM_4>;
    var acc0: array<vec4<f32>, HEAD_DIM_4>;
    var acc1: array<vec4<f32>, HEAD_DIM_4>;
    for (var i = 0u; i < HEAD_DIM_4; i += 1u) {
        mine0[i] = qk[q0 + i] * p.scale;
        mine1[i] = qk[q1 + i] * p.scale;
        given0[i] = d_o[at0 + i];
        given1[i] = d_o[at1 + i];
        acc0[i] = vec4<f32>();
        acc1[i] = vec4<f32>();
    }
    let f0 = facts[n0 * p.heads + h];
    let f1 = facts[n1 * p.heads + h];
    let lo1 = u32(f1.z);
    for (var j = u32(f0.z); j <= n1; j += 1u) {
        let key = k_at(j, g);
        let value = v_at(j, g);
        var s = vec2<f32>();
        var dp = vec2<f32>();
        for (var i = 0u; i < HEAD_DIM_4; i += 1u) {
            let x = qk[key + i];
            let y = v[value + i];
            s += vec2<f32>(dot(mine0[i], x), dot(mine1[i], x));
            dp += vec2<f32>(dot(given0[i], y), dot(given1[i], y));
        }
        s = vec2<f32>(soft_cap(s.x, p.cap), soft_cap(s.y, p.cap));
        let slope = vec2<f32>(soft_cap_slope(s.x, p.cap), soft_cap_slope(s.y, p.cap));
        var ds = exp(s - vec2<f32>(f0.x, f1.x)) * (dp - vec2<f32>(f0.y, f1.y)) * slope * p.scale;
        ds = select(vec2<f32>(), ds, vec2<bool>((j <= n0), (j >= lo1)));
        for (var i = 0u; i < HEAD_DIM_4; i += 1u) {
            let x = qk[key + i];
            acc0[i] += ds.x * x;
            acc1[i] += ds.y * x;
        }
    }
    for (var i = 0u; i < HEAD_DIM_4; i += 1u) { dqkv[q0 + i] = acc0[i]; dqkv[q1 + i] = acc1[i]; }
}

fn by_key(j0: u32, g: u32) {
    let j1 = min(j0 + 1u, p.n - 1u);
    let group = p.heads / p.kv_heads;
    let k0 = k_at(j0, g);
    let k1 = k_at(j1, g);
    let v0 = v_at(j0, g);
    let v1 = v_at(j1, g);
    var key0: array<vec4<f32>, HEAD_DIM_4>;
    var key1: array<vec4<f32>, HEAD_DIM_4>;
    var value0: array<vec4<f32>, HEAD_DIM_4>;
    var value1: array<vec4<f32>, HEAD_DIM_4>;
    var acc_k0: array<vec4<f32>, HEAD_DIM_4>;
    var acc_k1: array<vec4<f32>, HEAD_DIM_4>;
    var acc_v0: array<vec4<f32>, HEAD_DIM_4>;
    var acc_v1: array<vec4<f32>, HEAD_DIM_4>;
    for (var i = 0u; i < HEAD_DIM_4; i += 1u) {
        key0[i] = qk[k0 + i] * p.scale;
        key1[i] = qk[k1 + i] * p.scale;
        value0[i] = v[v0 + i];
        value1[i] = v[v1 + i];
        acc_k0[i] = vec4<f32>();
        acc_k1[i] = vec4<f32>();
        acc_v0[i] = vec4<f32>();
        acc_v1[i] = vec4<f32>();
    }
    let end0 = u32(facts[j0 * p.heads].w);
    let end1 = u32(facts[j1 * p.heads].w);
    for (var h = g * group; h < (g + 1u) * group; h += 1u) {
        for (var n = j0; n < end1; n += 1u) {
            let row = (n * p.heads + h) * HEAD_DIM_4;
            let query = q_at(n, h);
            var s = vec2<f32>();
            var dp = vec2<f32>();
            for (var i = 0u; i < HEAD_DIM_4; i += 1u) {
                let x = qk[query + i];
                let y = d_o[row + i];
                s += vec2<f32>(dot(key0[i], x), dot(key1[i], x));
                dp += vec2<f32>(dot(value0[i], y), dot(value1[i], y));
            }
            let f = facts[n * p.heads + h];
            s = vec2<f32>(soft_cap(s.x, p.cap), soft_cap(s.y, p.cap));
            let slope = vec2<f32>(soft_cap_slope(s.x, p.cap), soft_cap_slope(s.y, p.cap));
            let prob = select(vec2<f32>(), exp(s - f.x), vec2<bool>((n < end0), (n >= j1)));
            let ds = prob * (dp - f.y) * slope * p.scale;
            for (var i = 0u; i < HEAD_DIM_4; i += 1u) {
                let x = qk[query + i];
                let y = d_o[row + i];
                acc_v0[i] += prob.x * y;
                acc_v1[i] += prob.y * y;
                acc_k0[i] += ds.x * x;
                acc_k1[i] += ds.y * x;
            }
        }
    }
    for (var i = 0u; i < HEAD_DIM_4; i += 1u) {
        dqkv[k0 + i] = acc_k0[i];
        dqkv[v0 + i] = acc_v0[i];
        dqkv[k1 + i] = acc_k1[i];
        dqkv[v1 + i] = acc_v1[i];
    }
}
