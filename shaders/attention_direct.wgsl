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
// delta one invocation a (row, head), 64 a workgroup, in strides. HEAD_DIM_4 = D/4 and PER are prepended.
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

@compute @workgroup_size(64u / PER)
fn forward(@builtin(global_invocation_id) id: vec3<u32>) {
    let n0 = id.x * PER;
    if (n0 >= p.n) { return; }
    let last = min(n0 + PER, p.n) - 1u;
    let h = id.y;
    let g = h / (p.heads / p.kv_heads);
#for r in PER
    let query{r} = q_at(min(n0 + {r}u, last), h);
    var top{r} = LOWEST;
    var sum{r} = 0.0;
#for i in HEAD_DIM_4
    let q{r}_{i} = qk[query{r} + {i}u] * p.scale;
    var acc{r}_{i} = vec4<f32>();
#end
#end
    let to_value = p.kv_heads * HEAD_DIM_4; // from a key to its value
    let lo = first(last);
    // Four keys at a time: one rescaling for each four.
    for (var j = first(n0); j <= last; j += 4u) {
        let js = vec4<u32>(j, j + 1u, j + 2u, j + 3u);
        let seen = min(js, vec4<u32>(last));
        let key = vec4<u32>(k_at(seen.x, g), k_at(seen.y, g), k_at(seen.z, g), k_at(seen.w, g));
#for r in PER
        var s{r} = vec4<f32>();
#end
#for i in HEAD_DIM_4
        let k{i}_0 = qk[key.x + {i}u];
        let k{i}_1 = qk[key.y + {i}u];
        let k{i}_2 = qk[key.z + {i}u];
        let k{i}_3 = qk[key.w + {i}u];
#for r in PER
        s{r} += vec4<f32>(dot(q{r}_{i}, k{i}_0), dot(q{r}_{i}, k{i}_1), dot(q{r}_{i}, k{i}_2), dot(q{r}_{i}, k{i}_3));
#end
#end
#for r in PER
        if (p.cap != 0.0) {
            s{r} = vec4<f32>(soft_cap(s{r}.x, p.cap), soft_cap(s{r}.y, p.cap), soft_cap(s{r}.z, p.cap), soft_cap(s{r}.w, p.cap));
        }
        // A row that begins a document begins anew: what it had before, of no weight, is shrunk to nothing.
        let sees{r} = (js <= vec4<u32>(n0 + {r}u)) & ((js >= vec4<u32>(lo)) | vec4<bool>(n0 + {r}u < last));
        s{r} = select(vec4<f32>(LOWEST), s{r}, sees{r});
        let higher{r} = max(top{r}, max(max(s{r}.x, s{r}.y), max(s{r}.z, s{r}.w)));
        let shrink{r} = exp(top{r} - higher{r});
        s{r} = exp(s{r} - higher{r});
        sum{r} = sum{r} * shrink{r} + (s{r}.x + s{r}.y + s{r}.z + s{r}.w);
        top{r} = higher{r};
#end
#for i in HEAD_DIM_4
        let v{i}_0 = v[key.x + to_value + {i}u];
        let v{i}_1 = v[key.y + to_value + {i}u];
        let v{i}_2 = v[key.z + to_value + {i}u];
        let v{i}_3 = v[key.w + to_value + {i}u];
#for r in PER
        acc{r}_{i} = acc{r}_{i} * shrink{r} + (s{r}.x * v{i}_0 + s{r}.y * v{i}_1 + s{r}.z * v{i}_2 + s{r}.w * v{i}_3);
#end
#end
    }
#for r in PER
    if (n0 + {r}u <= last) {
        let at = (n0 + {r}u) * p.heads + h;
#for i in HEAD_DIM_4
        o[at * HEAD_DIM_4 + {i}u] = acc{r}_{i} / sum{r};
#end
        lse_out[at] = top{r} + log(sum{r});
    }
#end
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
#for r in PER
    let at{r} = min(n0 + {r}u, last) * p.heads + h;
    let query{r} = q_at(min(n0 + {r}u, last), h);
    let known{r} = facts[at{r}];
#for i in HEAD_DIM_4
    let q{r}_{i} = qk[query{r} + {i}u] * p.scale;
    let do{r}_{i} = d_o[at{r} * HEAD_DIM_4 + {i}u];
    var dq{r}_{i} = vec4<f32>();
#end
#end
    for (var j = u32(known0.z); j <= last; j += 1u) {
        let key = k_at(j, g);
        let value = v_at(j, g);
#for r in PER
        var s{r} = 0.0;
        var dp{r} = 0.0;
#end
#for i in HEAD_DIM_4
        let k{i} = qk[key + {i}u];
        let v{i} = v[value + {i}u];
#for r in PER
        s{r} += dot(q{r}_{i}, k{i});
        dp{r} += dot(do{r}_{i}, v{i});
#end
#end
#for r in PER
        let t{r} = soft_cap(s{r}, p.cap);
        let ds{r} = exp(t{r} - known{r}.x) * (dp{r} - known{r}.y) * soft_cap_slope(t{r}, p.cap) * p.scale;
        s{r} = select(0.0, ds{r}, j <= n0 + {r}u && j >= u32(known{r}.z));
#for i in HEAD_DIM_4
        dq{r}_{i} += s{r} * k{i};
#end
#end
    }
#for r in PER
    if (n0 + {r}u <= last) {
#for i in HEAD_DIM_4
        dqkv[query{r} + {i}u] = dq{r}_{i};
#end
    }
#end
}

fn by_key(j0: u32, g: u32) {
    let last = min(j0 + PER, p.n) - 1u;
    let group = p.heads / p.kv_heads;
#for r in PER
    let key{r} = k_at(min(j0 + {r}u, last), g);
    let value{r} = v_at(min(j0 + {r}u, last), g);
    let end{r} = u32(facts[min(j0 + {r}u, last) * p.heads].w);
#for i in HEAD_DIM_4
    let k{r}_{i} = qk[key{r} + {i}u] * p.scale;
    let v{r}_{i} = v[value{r} + {i}u];
    var dk{r}_{i} = vec4<f32>();
    var dv{r}_{i} = vec4<f32>();
#end
#end
    let most = u32(facts[last * p.heads].w);
    for (var h = g * group; h < (g + 1u) * group; h += 1u) {
        for (var n = j0; n < most; n += 1u) {
            let at = n * p.heads + h;
            let query = q_at(n, h);
#for r in PER
            var s{r} = 0.0;
            var dp{r} = 0.0;
#end
#for i in HEAD_DIM_4
            let q{i} = qk[query + {i}u];
            let do{i} = d_o[at * HEAD_DIM_4 + {i}u];
#for r in PER
            s{r} += dot(k{r}_{i}, q{i});
            dp{r} += dot(v{r}_{i}, do{i});
#end
#end
            let known = facts[at];
#for r in PER
            let t{r} = soft_cap(s{r}, p.cap);
            s{r} = select(0.0, exp(t{r} - known.x), n >= j0 + {r}u && n < end{r});
            dp{r} = s{r} * (dp{r} - known.y) * soft_cap_slope(t{r}, p.cap) * p.scale;
#for i in HEAD_DIM_4
            dv{r}_{i} += s{r} * do{i};
            dk{r}_{i} += dp{r} * q{i};
#end
#end
        }
    }
#for r in PER
    if (j0 + {r}u <= last) {
#for i in HEAD_DIM_4
        dqkv[key{r} + {i}u] = dk{r}_{i};
        dqkv[value{r} + {i}u] = dv{r}_{i};
#end
    }
#end
}
