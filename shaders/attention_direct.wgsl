// Causal attention over packed documents, grouped kv heads (g = h·G/H), online softmax, scores never stored: barrier-free,
// one or two rows an invocation, for software drivers, where loads cost most and registers are memory.
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
// delta one invocation a (row, head), 64 a workgroup, in strides. HEAD_DIM_4 = D/4 is prepended.
// One invocation owns PER neighbouring rows of one head; every output is overwritten.

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

// Neighbouring rows of an invocation: two, or one where heads are wide, since drivers that unroll the loops over a head
// then compile for a minute.
const PER: u32 = 2u - min(HEAD_DIM_4 / 17u, 1u);

@compute @workgroup_size(64u / PER)
fn forward(@builtin(global_invocation_id) id: vec3<u32>) {
    let n0 = id.x * PER;
    if (n0 >= p.n) { return; }
    let last = min(n0 + PER, p.n) - 1u;
    let h = id.y;
    let g = h / (p.heads / p.kv_heads);
    var mine: array<vec4<f32>, PER * HEAD_DIM_4>;
    var acc: array<vec4<f32>, PER * HEAD_DIM_4>;
    for (var r = 0u; r < PER; r += 1u) {
        let at = q_at(min(n0 + r, last), h);
        for (var i = 0u; i < HEAD_DIM_4; i += 1u) {
            mine[r * HEAD_DIM_4 + i] = qk[at + i] * p.scale;
            acc[r * HEAD_DIM_4 + i] = vec4<f32>();
        }
    }
    let to_value = p.kv_heads * HEAD_DIM_4; // from a key to its value
    var top: array<f32, PER>;
    var sum: array<f32, PER>;
    for (var r = 0u; r < PER; r += 1u) { top[r] = LOWEST; sum[r] = 0.0; }
    let lo = first(last);
    // Four keys at a time: one rescaling for each four.
    for (var j = first(n0); j <= last; j += 4u) {
        let js = vec4<u32>(j, j + 1u, j + 2u, j + 3u);
        let seen = min(js, vec4<u32>(last));
        let key = vec4<u32>(k_at(seen.x, g), k_at(seen.y, g), k_at(seen.z, g), k_at(seen.w, g));
        var s: array<vec4<f32>, PER>;
        for (var r = 0u; r < PER; r += 1u) { s[r] = vec4<f32>(); }
        for (var i = 0u; i < HEAD_DIM_4; i += 1u) {
            let x0 = qk[key.x + i]; let x1 = qk[key.y + i]; let x2 = qk[key.z + i]; let x3 = qk[key.w + i];
            for (var r = 0u; r < PER; r += 1u) {
                let a = mine[r * HEAD_DIM_4 + i];
                s[r] += vec4<f32>(dot(a, x0), dot(a, x1), dot(a, x2), dot(a, x3));
            }
        }
        var shrink: array<f32, PER>;
        for (var r = 0u; r < PER; r += 1u) {
            var t = s[r];
            if (p.cap != 0.0) {
                t = vec4<f32>(soft_cap(t.x, p.cap), soft_cap(t.y, p.cap), soft_cap(t.z, p.cap), soft_cap(t.w, p.cap));
            }
            // A row that begins a document begins anew: what it had before, of no weight, is shrunk to nothing.
            let sees = (js <= vec4<u32>(n0 + r)) & ((js >= vec4<u32>(lo)) | vec4<bool>(n0 + r < last));
            t = select(vec4<f32>(LOWEST), t, sees);
            let higher = max(top[r], max(max(t.x, t.y), max(t.z, t.w)));
            shrink[r] = exp(top[r] - higher);
            t = exp(t - higher);
            s[r] = t;
            sum[r] = sum[r] * shrink[r] + (t.x + t.y + t.z + t.w);
            top[r] = higher;
        }
        for (var i = 0u; i < HEAD_DIM_4; i += 1u) {
            let c = to_value + i;
            let x0 = v[key.x + c]; let x1 = v[key.y + c]; let x2 = v[key.z + c]; let x3 = v[key.w + c];
            for (var r = 0u; r < PER; r += 1u) {
                let w = s[r];
                acc[r * HEAD_DIM_4 + i] = acc[r * HEAD_DIM_4 + i] * shrink[r] + (w.x * x0 + w.y * x1 + w.z * x2 + w.w * x3);
            }
        }
    }
    for (var r = 0u; r < PER; r += 1u) {
        if (n0 + r > last) { break; }
        let at = (n0 + r) * p.heads + h;
        for (var i = 0u; i < HEAD_DIM_4; i += 1u) { o[at * HEAD_DIM_4 + i] = acc[r * HEAD_DIM_4 + i] / sum[r]; }
        lse_out[at] = top[r] + log(sum[r]);
    }
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

@compute @workgroup_size(64u / PER)
fn backward(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x * PER >= p.n) { return; }
    if (id.y < p.heads) { by_query(id.x * PER, id.y); } else { by_key(id.x * PER, id.y - p.heads); }
}

fn by_query(n0: u32, h: u32) {
    let last = min(n0 + PER, p.n) - 1u;
    let g = h / (p.heads / p.kv_heads);
    var mine: array<vec4<f32>, PER * HEAD_DIM_4>;
    var given: array<vec4<f32>, PER * HEAD_DIM_4>;
    var acc: array<vec4<f32>, PER * HEAD_DIM_4>;
    var known: array<vec4<f32>, PER>;
    for (var r = 0u; r < PER; r += 1u) {
        let at = min(n0 + r, last) * p.heads + h;
        let query = q_at(min(n0 + r, last), h);
        known[r] = facts[at];
        for (var i = 0u; i < HEAD_DIM_4; i += 1u) {
            mine[r * HEAD_DIM_4 + i] = qk[query + i] * p.scale;
            given[r * HEAD_DIM_4 + i] = d_o[at * HEAD_DIM_4 + i];
            acc[r * HEAD_DIM_4 + i] = vec4<f32>();
        }
    }
    for (var j = u32(known[0].z); j <= last; j += 1u) {
        let key = k_at(j, g);
        let value = v_at(j, g);
        var s: array<f32, PER>;
        var dp: array<f32, PER>;
        for (var r = 0u; r < PER; r += 1u) { s[r] = 0.0; dp[r] = 0.0; }
        for (var i = 0u; i < HEAD_DIM_4; i += 1u) {
            let x = qk[key + i];
            let y = v[value + i];
            for (var r = 0u; r < PER; r += 1u) {
                s[r] += dot(mine[r * HEAD_DIM_4 + i], x);
                dp[r] += dot(given[r * HEAD_DIM_4 + i], y);
            }
        }
        for (var r = 0u; r < PER; r += 1u) {
            let t = soft_cap(s[r], p.cap);
            let ds = exp(t - known[r].x) * (dp[r] - known[r].y) * soft_cap_slope(t, p.cap) * p.scale;
            s[r] = select(0.0, ds, j <= n0 + r && j >= u32(known[r].z));
        }
        for (var i = 0u; i < HEAD_DIM_4; i += 1u) {
            let x = qk[key + i];
            for (var r = 0u; r < PER; r += 1u) { acc[r * HEAD_DIM_4 + i] += s[r] * x; }
        }
    }
    for (var r = 0u; r < PER; r += 1u) {
        if (n0 + r > last) { break; }
        let at = q_at(n0 + r, h);
        for (var i = 0u; i < HEAD_DIM_4; i += 1u) { dqkv[at + i] = acc[r * HEAD_DIM_4 + i]; }
    }
}

fn by_key(j0: u32, g: u32) {
    let last = min(j0 + PER, p.n) - 1u;
    let group = p.heads / p.kv_heads;
    var key: array<vec4<f32>, PER * HEAD_DIM_4>;
    var value: array<vec4<f32>, PER * HEAD_DIM_4>;
    var acc_k: array<vec4<f32>, PER * HEAD_DIM_4>;
    var acc_v: array<vec4<f32>, PER * HEAD_DIM_4>;
    var ends: array<u32, PER>;
    for (var r = 0u; r < PER; r += 1u) {
        let j = min(j0 + r, last);
        let k = k_at(j, g);
        let v0 = v_at(j, g);
        ends[r] = u32(facts[j * p.heads].w);
        for (var i = 0u; i < HEAD_DIM_4; i += 1u) {
            key[r * HEAD_DIM_4 + i] = qk[k + i] * p.scale;
            value[r * HEAD_DIM_4 + i] = v[v0 + i];
            acc_k[r * HEAD_DIM_4 + i] = vec4<f32>();
            acc_v[r * HEAD_DIM_4 + i] = vec4<f32>();
        }
    }
    for (var h = g * group; h < (g + 1u) * group; h += 1u) {
        for (var n = j0; n < ends[PER - 1u]; n += 1u) {
            let at = n * p.heads + h;
            let query = q_at(n, h);
            var s: array<f32, PER>;
            var dp: array<f32, PER>;
            for (var r = 0u; r < PER; r += 1u) { s[r] = 0.0; dp[r] = 0.0; }
            for (var i = 0u; i < HEAD_DIM_4; i += 1u) {
                let x = qk[query + i];
                let y = d_o[at * HEAD_DIM_4 + i];
                for (var r = 0u; r < PER; r += 1u) {
                    s[r] += dot(key[r * HEAD_DIM_4 + i], x);
                    dp[r] += dot(value[r * HEAD_DIM_4 + i], y);
                }
            }
            let known = facts[at];
            for (var r = 0u; r < PER; r += 1u) {
                let t = soft_cap(s[r], p.cap);
                s[r] = select(0.0, exp(t - known.x), n >= j0 + r && n < ends[r]);
                dp[r] = s[r] * (dp[r] - known.y) * soft_cap_slope(t, p.cap) * p.scale;
            }
            for (var i = 0u; i < HEAD_DIM_4; i += 1u) {
                let x = qk[query + i];
                let y = d_o[at * HEAD_DIM_4 + i];
                for (var r = 0u; r < PER; r += 1u) {
                    acc_v[r * HEAD_DIM_4 + i] += s[r] * y;
                    acc_k[r * HEAD_DIM_4 + i] += dp[r] * x;
                }
            }
        }
    }
    for (var r = 0u; r < PER; r += 1u) {
        if (j0 + r > last) { break; }
        let k = k_at(j0 + r, g);
        let v0 = v_at(j0 + r, g);
        for (var i = 0u; i < HEAD_DIM_4; i += 1u) {
            dqkv[k + i] = acc_k[r * HEAD_DIM_4 + i];
            dqkv[v0 + i] = acc_v[r * HEAD_DIM_4 + i];
        }
    }
}
