// Causal attention over packed documents, grouped kv heads (g = h·G/H).
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
// Dispatch of delta: one invocation a (row, head), 64 a workgroup, in strides. HEAD_DIM_4 = D/4 is prepended.

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
fn delta(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let d4 = p.d / 4u;
    for (var i = id.x; i < p.n * p.heads; i += groups.x * 64u) {
        var s = 0.0;
        for (var c = 0u; c < d4; c += 1u) { s += dot(o_in[i * d4 + c], do_in[i * d4 + c]); }
        let n = i / p.heads;
        facts_out[i] = vec4<f32>(lse[i], s, f32(first(n)), f32(end(n)));
    }
}
