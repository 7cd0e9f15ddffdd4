// Causal attention over packed documents, grouped kv heads (g = h·G/H), online softmax, scores never stored: barrier-free,
// one or two rows an invocation, for software drivers, where loads cost most and registers are memory.
// Dispatch: x over rows, 64 a workgroup; y over heads, in backward over heads for dq and then kv heads for dk and dv. PER is
// prepended.
// One invocation owns PER neighbouring rows of one head; every output is overwritten.
//
// Only inner loops are written out: what is read before them and written after them goes through `moved`, by a loop, since a
// software driver compiles each written-out access for milliseconds.

#include attention

@compute @workgroup_size(64u / PER)
fn forward(@builtin(global_invocation_id) id: vec3<u32>) {
    let n0 = id.x * PER;
    if (n0 >= p.n) { return; }
    let last = min(n0 + PER, p.n) - 1u;
    let h = id.y;
    let g = h / (p.heads / p.kv_heads);
    var moved: array<vec4<f32>, PER * HEAD_DIM_4>;
    for (var i = 0u; i < PER * HEAD_DIM_4; i += 1u) {
        moved[i] = qk[q_at(min(n0 + i / HEAD_DIM_4, last), h) + i % HEAD_DIM_4] * p.scale;
    }
#for r in PER
    var top{r} = LOWEST;
    var sum{r} = 0.0;
#for i in HEAD_DIM_4
    let q{r}_{i} = moved[{r}u * HEAD_DIM_4 + {i}u];
    var acc{r}_{i} = vec4<f32>();
#end
#end
    let to_value = p.kv_heads * HEAD_DIM_4; // from a key to its value
    let lo = first(last);
    // Two keys at a time: one rescaling for both.
    for (var j = first(n0); j <= last; j += 2u) {
        let js = vec2<u32>(j, j + 1u);
        let seen = min(js, vec2<u32>(last));
        let key = vec2<u32>(k_at(seen.x, g), k_at(seen.y, g));
#for r in PER
        var s{r} = vec2<f32>();
#end
#for i in HEAD_DIM_4
        let k{i}_0 = qk[key.x + {i}u];
        let k{i}_1 = qk[key.y + {i}u];
#for r in PER
        s{r} += vec2<f32>(dot(q{r}_{i}, k{i}_0), dot(q{r}_{i}, k{i}_1));
#end
#end
#for r in PER
        if (p.cap != 0.0) { s{r} = vec2<f32>(soft_cap(s{r}.x, p.cap), soft_cap(s{r}.y, p.cap)); }
        // A row that begins a document begins anew: what it had before, of no weight, is shrunk to nothing.
        let sees{r} = (js <= vec2<u32>(n0 + {r}u)) & ((js >= vec2<u32>(lo)) | vec2<bool>(n0 + {r}u < last));
        s{r} = select(vec2<f32>(LOWEST), s{r}, sees{r});
        let higher{r} = max(top{r}, max(s{r}.x, s{r}.y));
        let shrink{r} = exp(top{r} - higher{r});
        s{r} = exp(s{r} - higher{r});
        sum{r} = sum{r} * shrink{r} + (s{r}.x + s{r}.y);
        top{r} = higher{r};
#end
#for i in HEAD_DIM_4
        let v{i}_0 = v[key.x + to_value + {i}u];
        let v{i}_1 = v[key.y + to_value + {i}u];
#for r in PER
        acc{r}_{i} = acc{r}_{i} * shrink{r} + (s{r}.x * v{i}_0 + s{r}.y * v{i}_1);
#end
#end
    }
#for r in PER
    if (n0 + {r}u <= last) {
        let at = (n0 + {r}u) * p.heads + h;
#for i in HEAD_DIM_4
        moved[{i}u] = acc{r}_{i};
#end
        for (var i = 0u; i < HEAD_DIM_4; i += 1u) { o[at * HEAD_DIM_4 + i] = moved[i] / sum{r}; }
        lse_out[at] = top{r} + log(sum{r});
    }
#end
}

// The heads of k come behind those of q, so that y says where both a row's head and its gradient begin.
@compute @workgroup_size(64u / PER)
fn backward(@builtin(global_invocation_id) id: vec3<u32>) {
    let n0 = id.x * PER;
    if (n0 >= p.n) { return; }
    let last = min(n0 + PER, p.n) - 1u;
    let group = p.heads / p.kv_heads;
    var moved: array<vec4<f32>, PER * HEAD_DIM_4>;
    for (var i = 0u; i < PER * HEAD_DIM_4; i += 1u) {
        moved[i] = qk[q_at(min(n0 + i / HEAD_DIM_4, last), id.y) + i % HEAD_DIM_4] * p.scale;
    }
#for r in PER
#for i in HEAD_DIM_4
    let own{r}_{i} = moved[{r}u * HEAD_DIM_4 + {i}u];
    var grad{r}_{i} = vec4<f32>();
#end
#end
    if (id.y < p.heads) {
        // dq of a head: over the keys that its queries see.
        let h = id.y;
        let g = h / group;
        for (var i = 0u; i < PER * HEAD_DIM_4; i += 1u) {
            moved[i] = d_o[(min(n0 + i / HEAD_DIM_4, last) * p.heads + h) * HEAD_DIM_4 + i % HEAD_DIM_4];
        }
#for r in PER
        let known{r} = facts[min(n0 + {r}u, last) * p.heads + h];
#for i in HEAD_DIM_4
        let do{r}_{i} = moved[{r}u * HEAD_DIM_4 + {i}u];
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
            s{r} += dot(own{r}_{i}, k{i});
            dp{r} += dot(do{r}_{i}, v{i});
#end
#end
#for r in PER
            let t{r} = soft_cap(s{r}, p.cap);
            let ds{r} = exp(t{r} - known{r}.x) * (dp{r} - known{r}.y) * soft_cap_slope(t{r}, p.cap) * p.scale;
            s{r} = select(0.0, ds{r}, j <= n0 + {r}u && j >= u32(known{r}.z));
#for i in HEAD_DIM_4
            grad{r}_{i} += s{r} * k{i};
#end
#end
        }
    } else {
        // dk and dv of a kv head: over the queries of its group that see its keys.
        let g = id.y - p.heads;
        for (var i = 0u; i < PER * HEAD_DIM_4; i += 1u) {
            moved[i] = v[v_at(min(n0 + i / HEAD_DIM_4, last), g) + i % HEAD_DIM_4];
        }
#for r in PER
        let end{r} = u32(facts[min(n0 + {r}u, last) * p.heads].w);
#for i in HEAD_DIM_4
        let v{r}_{i} = moved[{r}u * HEAD_DIM_4 + {i}u];
        var dv{r}_{i} = vec4<f32>();
#end
#end
        let most = u32(facts[last * p.heads].w);
        for (var h = g * group; h < (g + 1u) * group; h += 1u) {
            for (var n = n0; n < most; n += 1u) {
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
                s{r} += dot(own{r}_{i}, q{i});
                dp{r} += dot(v{r}_{i}, do{i});
#end
#end
                let known = facts[at];
#for r in PER
                let t{r} = soft_cap(s{r}, p.cap);
                s{r} = select(0.0, exp(t{r} - known.x), n >= n0 + {r}u && n < end{r});
                dp{r} = s{r} * (dp{r} - known.y) * soft_cap_slope(t{r}, p.cap) * p.scale;
#for i in HEAD_DIM_4
                dv{r}_{i} += s{r} * do{i};
                grad{r}_{i} += dp{r} * q{i};
#end
#end
            }
        }
#for r in PER
#for i in HEAD_DIM_4
        moved[{r}u * HEAD_DIM_4 + {i}u] = dv{r}_{i};
#end
#end
        for (var i = 0u; i < (last + 1u - n0) * HEAD_DIM_4; i += 1u) {
            dqkv[v_at(n0 + i / HEAD_DIM_4, g) + i % HEAD_DIM_4] = moved[i];
        }
    }
#for r in PER
#for i in HEAD_DIM_4
    moved[{r}u * HEAD_DIM_4 + {i}u] = grad{r}_{i};
#end
#end
    for (var i = 0u; i < (last + 1u - n0) * HEAD_DIM_4; i += 1u) {
        dqkv[q_at(n0 + i / HEAD_DIM_4, id.y) + i % HEAD_DIM_4] = moved[i];
    }
}
