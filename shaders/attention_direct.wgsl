// Causal attention over packed documents, grouped kv heads (g = h·G/H), online softmax, scores never stored: barrier-free,
// one or two rows an invocation, for software drivers, where loads cost most and registers are memory.
// Dispatch: x over rows, 64 a workgroup; y over heads, in backward over heads for dq and then kv heads for dk and dv. PER is
// prepended.
// One invocation owns PER neighbouring rows of one head; every output is overwritten.

#include attention

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
