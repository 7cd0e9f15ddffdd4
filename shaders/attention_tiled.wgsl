// Causal attention over packed documents, staged through workgroup memory: tiles of 32 rows against tiles of 32
// (Dao 2023, FlashAttention-2), for GPUs where its barriers are cheap.
// Dispatch: x over tiles of 32 rows; y over heads, in backward over heads for dq and then kv heads for dk and dv; z over
// slabs of 128 columns of what is written, each of which computes the scores anew.
// Tiles that no row of a workgroup's sees are not visited; every output is overwritten.

#include attention

const TILE: u32 = 32u;
// Invocation (x, y) of 8 × 8 has the rows y + 8r of the workgroup's own tile against the rows x + 8s of the other one, and
// the columns x + 8c (in fours) of what it adds up.
const SLAB: u32 = 32u;
const COLUMNS: u32 = (min(HEAD_DIM_4, SLAB) + 7u) / 8u;

// A piece of 8 fours of each tile, row by row. A row's fours are permuted by its number, so that lanes that read the
// same place of different rows read different banks.
var<workgroup> own: array<vec4<f32>, 256>;
var<workgroup> other: array<vec4<f32>, 256>;
// What the own rows take of the other ones: weights[row of other][y] holds those of y + 8r.
var<workgroup> weights: array<vec4<f32>, 256>;

fn place(row: u32, four: u32) -> u32 { return row * 8u + (four ^ (row & 7u)); }

// Staging: an invocation carries four fours of 256, row by row. Rows and columns beyond the edge are zero.
fn query(n: u32, h: u32, c: u32) -> vec4<f32> {
    if (n >= p.n || c >= HEAD_DIM_4) { return vec4<f32>(); }
    return qk[q_at(n, h) + c];
}
fn key(j: u32, g: u32, c: u32) -> vec4<f32> {
    if (j >= p.n || c >= HEAD_DIM_4) { return vec4<f32>(); }
    return qk[k_at(j, g) + c];
}
fn value(j: u32, g: u32, c: u32) -> vec4<f32> {
    if (j >= p.n || c >= HEAD_DIM_4) { return vec4<f32>(); }
    return v[v_at(j, g) + c];
}
fn given(n: u32, h: u32, c: u32) -> vec4<f32> {
    if (n >= p.n || c >= HEAD_DIM_4) { return vec4<f32>(); }
    return d_o[(n * p.heads + h) * HEAD_DIM_4 + c];
}

// Adds the products of the staged pieces: column s of the matrix is row x + 8s of the other tile.
fn multiply(x: u32, y: u32, so_far: mat4x4<f32>) -> mat4x4<f32> {
    var s = so_far;
    for (var c = 0u; c < 8u; c += 1u) {
        let a0 = own[place(y, c)];
        let a1 = own[place(y + 8u, c)];
        let a2 = own[place(y + 16u, c)];
        let a3 = own[place(y + 24u, c)];
        let b0 = other[place(x, c)];
        let b1 = other[place(x + 8u, c)];
        let b2 = other[place(x + 16u, c)];
        let b3 = other[place(x + 24u, c)];
        s[0] += vec4<f32>(dot(a0, b0), dot(a1, b0), dot(a2, b0), dot(a3, b0));
        s[1] += vec4<f32>(dot(a0, b1), dot(a1, b1), dot(a2, b1), dot(a3, b1));
        s[2] += vec4<f32>(dot(a0, b2), dot(a1, b2), dot(a2, b2), dot(a3, b2));
        s[3] += vec4<f32>(dot(a0, b3), dot(a1, b3), dot(a2, b3), dot(a3, b3));
    }
    return s;
}

fn put_weights(x: u32, y: u32, w: mat4x4<f32>) {
    weights[place(x, y)] = w[0];
    weights[place(x + 8u, y)] = w[1];
    weights[place(x + 16u, y)] = w[2];
    weights[place(x + 24u, y)] = w[3];
}

// Adds the staged columns of the other tile by the weights: column r of the matrix is row y + 8r of the own one.
fn weigh(x: u32, y: u32, so_far: mat4x4<f32>) -> mat4x4<f32> {
    var a = so_far;
    for (var j = 0u; j < TILE; j += 1u) {
        let w = weights[place(j, y)];
        let b = other[place(j, x)];
        a[0] += w.x * b;
        a[1] += w.y * b;
        a[2] += w.z * b;
        a[3] += w.w * b;
    }
    return a;
}

// q·k of a tile of queries (the own one) and one of keys.
fn query_scores(lane: u32, n0: u32, h: u32, j0: u32, g: u32) -> mat4x4<f32> {
    var s = mat4x4<f32>();
    for (var c = 0u; c < HEAD_DIM_4; c += 8u) {
        workgroupBarrier();
        for (var i = lane; i < 256u; i += 64u) {
            own[place(i / 8u, i % 8u)] = query(n0 + i / 8u, h, c + i % 8u);
            other[place(i / 8u, i % 8u)] = key(j0 + i / 8u, g, c + i % 8u);
        }
        workgroupBarrier();
        s = multiply(lane % 8u, lane / 8u, s);
    }
    return s;
}

// do·v of a tile of queries (the own one) and one of keys.
fn query_gradients(lane: u32, n0: u32, h: u32, j0: u32, g: u32) -> mat4x4<f32> {
    var s = mat4x4<f32>();
    for (var c = 0u; c < HEAD_DIM_4; c += 8u) {
        workgroupBarrier();
        for (var i = lane; i < 256u; i += 64u) {
            own[place(i / 8u, i % 8u)] = given(n0 + i / 8u, h, c + i % 8u);
            other[place(i / 8u, i % 8u)] = value(j0 + i / 8u, g, c + i % 8u);
        }
        workgroupBarrier();
        s = multiply(lane % 8u, lane / 8u, s);
    }
    return s;
}

fn cap4(s: vec4<f32>) -> vec4<f32> {
    if (p.cap == 0.0) { return s; }
    return vec4<f32>(soft_cap(s.x, p.cap), soft_cap(s.y, p.cap), soft_cap(s.z, p.cap), soft_cap(s.w, p.cap));
}

fn slope4(y: vec4<f32>) -> vec4<f32> {
    if (p.cap == 0.0) { return vec4<f32>(1.0); }
    return 1.0 - y / p.cap * (y / p.cap);
}

@compute @workgroup_size(64)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let x = lane % 8u;
    let y = lane / 8u;
    let h = group.y;
    let g = h / (p.heads / p.kv_heads);
    let n0 = group.x * TILE;
    let n = vec4<u32>(n0 + y) + vec4<u32>(0u, 8u, 16u, 24u);
    let last = p.n - 1u;
    let lo = vec4<u32>(first(min(n.x, last)), first(min(n.y, last)), first(min(n.z, last)), first(min(n.w, last)));
    var acc: array<mat4x4<f32>, COLUMNS>;
    var top = vec4<f32>(LOWEST);
    var sum = vec4<f32>(); // of the keys x + 8s: their weights are added up over x at the end
    for (var j0 = first(n0) / TILE * TILE; j0 < min(n0 + TILE, p.n); j0 += TILE) {
        var s = query_scores(lane, n0, h, j0, g);
        var highest = vec4<f32>(LOWEST);
        for (var i = 0u; i < 4u; i += 1u) {
            let j = vec4<u32>(j0 + x + 8u * i);
            s[i] = select(vec4<f32>(LOWEST), cap4(s[i] * p.scale), (j >= lo) & (j <= n));
            highest = max(highest, s[i]);
        }
        // The own piece is read no more: it carries the highest scores from lane to lane.
        workgroupBarrier();
        own[place(y, x)] = highest;
        workgroupBarrier();
        for (var i = 0u; i < 8u; i += 1u) { highest = max(highest, own[place(y, i)]); }
        let higher = max(top, highest);
        let shrink = exp(top - higher);
        top = higher;
        sum *= shrink;
        for (var i = 0u; i < 4u; i += 1u) {
            s[i] = select(vec4<f32>(), exp(s[i] - top), s[i] > vec4<f32>(LOWEST));
            sum += s[i];
        }
        put_weights(x, y, s);
        for (var c = 0u; c < COLUMNS; c += 1u) {
            workgroupBarrier();
            for (var i = lane; i < 256u; i += 64u) {
                other[place(i / 8u, i % 8u)] = value(j0 + i / 8u, g, group.z * SLAB + c * 8u + i % 8u);
            }
            workgroupBarrier();
            let a = acc[c];
            acc[c] = weigh(x, y, mat4x4<f32>(a[0] * shrink.x, a[1] * shrink.y, a[2] * shrink.z, a[3] * shrink.w));
        }
    }
    workgroupBarrier();
    own[place(y, x)] = sum;
    workgroupBarrier();
    sum = vec4<f32>();
    for (var i = 0u; i < 8u; i += 1u) { sum += own[place(y, i)]; }
    for (var r = 0u; r < 4u; r += 1u) {
        if (n[r] >= p.n) { break; }
        let row = n[r] * p.heads + h;
        if (x == 0u && group.z == 0u) { lse_out[row] = top[r] + log(sum[r]); }
        for (var c = 0u; c < COLUMNS; c += 1u) {
            let at = group.z * SLAB + c * 8u + x;
            if (at < HEAD_DIM_4) { o[row * HEAD_DIM_4 + at] = acc[c][r] / sum[r]; }
        }
    }
}

@compute @workgroup_size(64)
fn backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    if (group.y < p.heads) {
        by_query(group.x * TILE, group.y, group.z * SLAB, lane);
    } else {
        by_key(group.x * TILE, group.y - p.heads, group.z * SLAB, lane);
    }
}

fn by_query(n0: u32, h: u32, slab: u32, lane: u32) {
    let x = lane % 8u;
    let y = lane / 8u;
    let g = h / (p.heads / p.kv_heads);
    let n = vec4<u32>(n0 + y) + vec4<u32>(0u, 8u, 16u, 24u);
    var known: mat4x4<f32>; // by facts, then by rows
    for (var r = 0u; r < 4u; r += 1u) { known[r] = facts[min(n[r], p.n - 1u) * p.heads + h]; }
    known = transpose(known);
    let lo = vec4<u32>(known[2]);
    var acc: array<mat4x4<f32>, COLUMNS>;
    for (var j0 = u32(facts[n0 * p.heads].z) / TILE * TILE; j0 < min(n0 + TILE, p.n); j0 += TILE) {
        var s = query_scores(lane, n0, h, j0, g);
        let dp = query_gradients(lane, n0, h, j0, g);
        for (var i = 0u; i < 4u; i += 1u) {
            let j = vec4<u32>(j0 + x + 8u * i);
            let capped = cap4(s[i] * p.scale);
            let ds = exp(capped - known[0]) * (dp[i] - known[1]) * slope4(capped) * p.scale;
            s[i] = select(vec4<f32>(), ds, (j >= lo) & (j <= n));
        }
        put_weights(x, y, s);
        for (var c = 0u; c < COLUMNS; c += 1u) {
            workgroupBarrier();
            for (var i = lane; i < 256u; i += 64u) {
                other[place(i / 8u, i % 8u)] = key(j0 + i / 8u, g, slab + c * 8u + i % 8u);
            }
            workgroupBarrier();
            acc[c] = weigh(x, y, acc[c]);
        }
    }
    for (var r = 0u; r < 4u; r += 1u) {
        if (n[r] >= p.n) { break; }
        for (var c = 0u; c < COLUMNS; c += 1u) {
            let at = slab + c * 8u + x;
            if (at < HEAD_DIM_4) { dqkv[q_at(n[r], h) + at] = acc[c][r]; }
        }
    }
}

// The same scores, but the own tile is then the keys': each of them takes of the queries that see it.
fn by_key(j0: u32, g: u32, slab: u32, lane: u32) {
    let x = lane % 8u;
    let y = lane / 8u;
    let group = p.heads / p.kv_heads;
    let last = u32(facts[min(j0 + TILE, p.n) * p.heads - 1u].w);
    var acc_k: array<mat4x4<f32>, COLUMNS>;
    var acc_v: array<mat4x4<f32>, COLUMNS>;
    for (var h = g * group; h < (g + 1u) * group; h += 1u) {
        for (var n0 = j0; n0 < last; n0 += TILE) {
            let n = vec4<u32>(n0 + y) + vec4<u32>(0u, 8u, 16u, 24u);
            var known: mat4x4<f32>; // by facts, then by rows
            for (var r = 0u; r < 4u; r += 1u) { known[r] = facts[min(n[r], p.n - 1u) * p.heads + h]; }
            known = transpose(known);
            let lo = vec4<u32>(known[2]);
            var s = query_scores(lane, n0, h, j0, g);
            var ds = query_gradients(lane, n0, h, j0, g);
            for (var i = 0u; i < 4u; i += 1u) {
                let j = vec4<u32>(j0 + x + 8u * i);
                let capped = cap4(s[i] * p.scale);
                s[i] = select(vec4<f32>(), exp(capped - known[0]), (j >= lo) & (j <= n) & (n < vec4<u32>(p.n)));
                ds[i] = s[i] * (ds[i] - known[1]) * slope4(capped) * p.scale;
            }
            put_weights(y, x, transpose(s));
            for (var c = 0u; c < COLUMNS; c += 1u) {
                workgroupBarrier();
                for (var i = lane; i < 256u; i += 64u) {
                    other[place(i / 8u, i % 8u)] = given(n0 + i / 8u, h, slab + c * 8u + i % 8u);
                }
                workgroupBarrier();
                acc_v[c] = weigh(x, y, acc_v[c]);
            }
            workgroupBarrier();
            put_weights(y, x, transpose(ds));
            for (var c = 0u; c < COLUMNS; c += 1u) {
                workgroupBarrier();
                for (var i = lane; i < 256u; i += 64u) {
                    other[place(i / 8u, i % 8u)] = query(n0 + i / 8u, h, slab + c * 8u + i % 8u);
                }
                workgroupBarrier();
                acc_k[c] = weigh(x, y, acc_k[c]);
            }
        }
    }
    for (var r = 0u; r < 4u; r += 1u) {
        let j = j0 + y + 8u * r;
        if (j >= p.n) { break; }
        for (var c = 0u; c < COLUMNS; c += 1u) {
            let at = slab + c * 8u + x;
            if (at < HEAD_DIM_4) {
                dqkv[k_at(j, g) + at] = acc_k[c][r];
                dqkv[v_at(j, g) + at] = acc_v[c][r];
            }
        }
    }
}
