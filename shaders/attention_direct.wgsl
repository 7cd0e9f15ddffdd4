// Causal attention over packed documents, grouped kv heads (g = h·G/H), online softmax, scores never stored: barrier-free.
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
// Dispatch: x over rows, 64 a workgroup; y over heads, in backward over heads for dq and then kv heads for dk and dv;
// delta over (row, head), in strides. HEAD_DIM_4 = D/4 is prepended.
// One invocation owns one row of one head; every output is overwritten.

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

@compute @workgroup_size(64)
fn forward(@builtin(global_invocation_id) id: vec3<u32>) {
    let n = id.x;
    if (n >= p.n) { return; }
    let h = id.y;
    let g = h / (p.heads / p.kv_heads);
    let at = (n * p.heads + h) * HEAD_DIM_4;
    let query = q_at(n, h);
    var mine: array<vec4<f32>, HEAD_DIM_4>;
    var acc: array<vec4<f32>, HEAD_DIM_4>;
    for (var i = 0u; i < HEAD_DIM_4; i += 1u) {
        mine[i] = qk[query + i] * p.scale;
        acc[i] = vec4<f32>();
    }
    let to_value = p.kv_heads * HEAD_DIM_4; // from a key to its value
    var top = LOWEST;
    var sum = 0.0;
    // Four keys at a time: one rescaling for each four.
    for (var j = first(n); j <= n; j += 4u) {
        let k0 = k_at(j, g);
        let k1 = k_at(min(j + 1u, n), g);
        let k2 = k_at(min(j + 2u, n), g);
        let k3 = k_at(min(j + 3u, n), g);
        var s = vec4<f32>();
        for (var i = 0u; i < HEAD_DIM_4; i += 1u) {
            let a = mine[i];
            s += vec4<f32>(dot(a, qk[k0 + i]), dot(a, qk[k1 + i]), dot(a, qk[k2 + i]), dot(a, qk[k3 + i]));
        }
        if (p.cap != 0.0) {
            s = vec4<f32>(soft_cap(s.x, p.cap), soft_cap(s.y, p.cap), soft_cap(s.z, p.cap), soft_cap(s.w, p.cap));
        }
        s = select(vec4<f32>(LOWEST), s, vec4<u32>(j, j + 1u, j + 2u, j + 3u) <= vec4<u32>(n));
        let higher = max(top, max(max(s.x, s.y), max(s.z, s.w)));
        let shrink = exp(top - higher);
        let w = exp(s - higher);
        sum = sum * shrink + (w.x + w.y + w.z + w.w);
        top = higher;
        for (var i = 0u; i < HEAD_DIM_4; i += 1u) {
            let c = to_value + i;
            acc[i] = acc[i] * shrink + (w.x * v[k0 + c] + w.y * v[k1 + c] + w.z * v[k2 + c] + w.w * v[k3 + c]);
        }
    }
    for (var i = 0u; i < HEAD_DIM_4; i += 1u) { o[at + i] = acc[i] / sum; }
    lse_out[n * p.heads + h] = top + log(sum);
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

@compute @workgroup_size(64)
fn backward(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x >= p.n) { return; }
    if (id.y < p.heads) { by_query(id.x, id.y); } else { by_key(id.x, id.y - p.heads); }
}

fn by_query(n: u32, h: u32) {
    let g = h / (p.heads / p.kv_heads);
    let at = (n * p.heads + h) * HEAD_DIM_4;
    let query = q_at(n, h);
    var mine: array<vec4<f32>, HEAD_DIM_4>;
    var given: array<vec4<f32>, HEAD_DIM_4>;
    var acc: array<vec4<f32>, HEAD_DIM_4>;
    for (var i = 0u; i < HEAD_DIM_4; i += 1u) {
        mine[i] = qk[query + i] * p.scale;
        given[i] = d_o[at + i];
        acc[i] = vec4<f32>();
    }
    let mine_facts = facts[n * p.heads + h];
    for (var j = u32(mine_facts.z); j <= n; j += 1u) {
        let key = k_at(j, g);
        let value = v_at(j, g);
        var s = 0.0;
        var dp = 0.0;
        for (var i = 0u; i < HEAD_DIM_4; i += 1u) {
            s += dot(mine[i], qk[key + i]);
            dp += dot(given[i], v[value + i]);
        }
        s = soft_cap(s, p.cap);
        let ds = exp(s - mine_facts.x) * (dp - mine_facts.y) * soft_cap_slope(s, p.cap) * p.scale;
        for (var i = 0u; i < HEAD_DIM_4; i += 1u) { acc[i] += ds * qk[key + i]; }
    }
    for (var i = 0u; i < HEAD_DIM_4; i += 1u) { dqkv[query + i] = acc[i]; }
}

fn by_key(j: u32, g: u32) {
    let group = p.heads / p.kv_heads;
    let k_from = k_at(j, g);
    let v_from = v_at(j, g);
    var key: array<vec4<f32>, HEAD_DIM_4>;
    var value: array<vec4<f32>, HEAD_DIM_4>;
    var acc_k: array<vec4<f32>, HEAD_DIM_4>;
    var acc_v: array<vec4<f32>, HEAD_DIM_4>;
    for (var i = 0u; i < HEAD_DIM_4; i += 1u) {
        key[i] = qk[k_from + i] * p.scale;
        value[i] = v[v_from + i];
        acc_k[i] = vec4<f32>();
        acc_v[i] = vec4<f32>();
    }
    let last = u32(facts[j * p.heads].w);
    for (var h = g * group; h < (g + 1u) * group; h += 1u) {
        for (var n = j; n < last; n += 1u) {
            let row = (n * p.heads + h) * HEAD_DIM_4;
            let query = q_at(n, h);
            var s = 0.0;
            var dp = 0.0;
            for (var i = 0u; i < HEAD_DIM_4; i += 1u) {
                s += dot(key[i], qk[query + i]);
                dp += dot(value[i], d_o[row + i]);
            }
            let row_facts = facts[n * p.heads + h];
            s = soft_cap(s, p.cap);
            let prob = exp(s - row_facts.x);
            let ds = prob * (dp - row_facts.y) * soft_cap_slope(s, p.cap) * p.scale;
            for (var i = 0u; i < HEAD_DIM_4; i += 1u) {
                acc_v[i] += prob * d_o[row + i];
                acc_k[i] += ds * qk[query + i];
            }
        }
    }
    for (var i = 0u; i < HEAD_DIM_4; i += 1u) {
        dqkv[k_from + i] = acc_k[i];
        dqkv[v_from + i] = acc_v[i];
    }
}
