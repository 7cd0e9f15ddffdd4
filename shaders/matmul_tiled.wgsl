// Products with a frozen matrix W:[O,I], staged through workgroup memory: 64 × 64 outputs a
// workgroup, 4 × 4 an invocation, 16 of the inner index at a time.
//
// forward:   y[n, col+o] = scale·Σ_i x[n,i]·W[o,i] + low + bias[bias_off+o] + res[n, col+o] (+ y)
// backward:  dx[n, i]    = Σ_o dy[n, col+o]·W[o,i] + low (+ dx)
// low:       s·Σ_r t[n, t+r]·F[r, c−col] at column c of y or dx, for each factor F:[rank, width] that has the column
//
// x, dx:[N,I]  y, dy, res:[N,ld]  t:[N,t_ld]  F at float `off` of flat
// I, ld, every col and width and (in backward) O are multiples of 4.
// Dispatch: x over blocks of 64 rows, y over blocks of 64 outputs. load_w is prepended.
// flags: 1 adds bias, 2 adds res, 4 adds to what y (dx) holds; else it is overwritten.

struct Factor { off: u32, rank: u32, t: u32, col: u32, width: u32, scale: f32, pad0: u32, pad1: u32 }
struct Params {
    n: u32, i: u32, o: u32, ld: u32, col: u32, w_off: u32, scale: f32, flags: u32,
    bias_off: u32, t_ld: u32, pad0: u32, pad1: u32, factors: array<Factor, 3>,
}
@group(1) @binding(0) var<uniform> p: Params;

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>; // x forward, dy backward
@group(0) @binding(2) var<storage, read> t: array<f32>;
@group(0) @binding(3) var<storage, read> flat: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> bias: array<f32>;
@group(0) @binding(5) var<storage, read> res: array<f32>;
@group(0) @binding(6) var<storage, read_write> y: array<f32>;
@group(0) @binding(4) var<storage, read_write> dx: array<vec4<f32>>;

const TILE: u32 = 64u;
const K: u32 = 16u;
var<workgroup> xs: array<vec4<f32>, 256>; // [K][TILE / 4]
var<workgroup> ws: array<vec4<f32>, 256>;

// Invocation `i` of 256 stages four values along the inner index: row i / 4, inner index (i % 4) · 4.
fn stage_x(row: u32, base: u32, k: u32, k_end: u32) -> vec4<f32> {
    if (row >= p.n || k >= k_end) { return vec4<f32>(); }
    return x[(base + k) / 4u];
}

// Writes v, four values along the inner index, into column `row` of a [K][TILE] tile.
fn put_x(row: u32, k: u32, v: vec4<f32>) {
    for (var j = 0u; j < 4u; j += 1u) { xs[(k + j) * 16u + row / 4u][row & 3u] = v[j]; }
}
fn put_w(row: u32, k: u32, v: vec4<f32>) {
    for (var j = 0u; j < 4u; j += 1u) { ws[(k + j) * 16u + row / 4u][row & 3u] = v[j]; }
}

// The low-rank terms at columns c to c + 3 of row n.
fn low(n: u32, c: u32) -> vec4<f32> {
    var v = vec4<f32>();
    for (var k = 0u; k < 3u; k += 1u) {
        let f = p.factors[k];
        if (c < f.col || c >= f.col + f.width) { continue; }
        for (var r = 0u; r < f.rank; r += 1u) {
            v += f.scale * t[n * p.t_ld + f.t + r] * flat[(f.off + r * f.width + c - f.col) / 4u];
        }
    }
    return v;
}

@compute @workgroup_size(16, 16)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) id: vec3<u32>) {
    let i = id.y * 16u + id.x;
    let row = i / 4u;
    let kk = (i & 3u) * 4u;
    let n = group.x * TILE + row;
    let o = group.y * TILE + row;
    var c0 = vec4<f32>(); var c1 = vec4<f32>(); var c2 = vec4<f32>(); var c3 = vec4<f32>();
    for (var k = 0u; k < p.i; k += K) {
        var b = vec4<f32>();
        if (o < p.o && k + kk < p.i) { b = load_w(o, k + kk, p.i, p.w_off); }
        put_x(row, kk, stage_x(n, n * p.i, k + kk, p.i));
        put_w(row, kk, b);
        workgroupBarrier();
        for (var j = 0u; j < K; j += 1u) {
            let a = xs[j * 16u + id.y];
            let b = ws[j * 16u + id.x];
            c0 += a.x * b; c1 += a.y * b; c2 += a.z * b; c3 += a.w * b;
        }
        workgroupBarrier();
    }
    var c = array<vec4<f32>, 4>(c0, c1, c2, c3);
    let o0 = group.y * TILE + id.x * 4u;
    for (var m = 0u; m < 4u; m += 1u) {
        let n = group.x * TILE + id.y * 4u + m;
        if (n >= p.n || o0 >= p.o) { break; }
        let a = c[m] * p.scale + low(n, p.col + o0);
        for (var j = 0u; j < 4u; j += 1u) {
            if (o0 + j >= p.o) { break; }
            let o = p.col + o0 + j;
            var v = a[j];
            if ((p.flags & 1u) != 0u) { v += bias[p.bias_off + o - p.col]; }
            if ((p.flags & 2u) != 0u) { v += res[n * p.ld + o]; }
            if ((p.flags & 4u) != 0u) { v += y[n * p.ld + o]; }
            y[n * p.ld + o] = v;
        }
    }
}

@compute @workgroup_size(16, 16)
fn backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) id: vec3<u32>) {
    let i = id.y * 16u + id.x;
    let row = i / 4u;
    let kk = (i & 3u) * 4u;
    let n = group.x * TILE + row;
    let col = group.y * TILE + id.x * 4u;
    var c0 = vec4<f32>(); var c1 = vec4<f32>(); var c2 = vec4<f32>(); var c3 = vec4<f32>();
    for (var k = 0u; k < p.o; k += K) {
        var b = vec4<f32>();
        if (k + id.y < p.o && col < p.i) { b = load_w(k + id.y, col, p.i, p.w_off); }
        put_x(row, kk, stage_x(n, n * p.ld + p.col, k + kk, p.o));
        ws[id.y * 16u + id.x] = b;
        workgroupBarrier();
        for (var j = 0u; j < K; j += 1u) {
            let a = xs[j * 16u + id.y];
            let b = ws[j * 16u + id.x];
            c0 += a.x * b; c1 += a.y * b; c2 += a.z * b; c3 += a.w * b;
        }
        workgroupBarrier();
    }
    var c = array<vec4<f32>, 4>(c0, c1, c2, c3);
    for (var m = 0u; m < 4u; m += 1u) {
        let n = group.x * TILE + id.y * 4u + m;
        if (n >= p.n || col >= p.i) { break; }
        var a = c[m] + low(n, col);
        let at = (n * p.i + col) / 4u;
        if ((p.flags & 4u) != 0u) { a += dx[at]; }
        dx[at] = a;
    }
}
