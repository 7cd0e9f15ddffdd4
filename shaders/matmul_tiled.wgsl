// Products with a frozen matrix W:[O,I], staged through workgroup memory: 64 × 64 outputs a
// workgroup, 4 × 4 an invocation, 16 of the inner index at a time.
//
// forward:   y[n, col+o] = scale·Σ_i x[n,i]·W[o,i] + low_scale·Σ_r t[n,r]·low[r, col+o] + bias[col+o] + res[n, col+o] (+ y)
// backward:  dx[n, i]    = Σ_o dy[n, col+o]·W[o,i] + low_scale·Σ_r t[n,r]·low[r, i] (+ dx)
//
// x, dx:[N,I]  y, dy, res:[N,ld]  t:[N,R]  low:[R,low_ld] from float low_off  bias:[ld]
// I, ld, low_ld, col and (in backward) O are multiples of 4.
// Dispatch: x over blocks of 64 rows, y over blocks of 64 outputs. load_w is prepended.
// flags: 1 adds bias, 2 adds res, 4 adds to what y (dx) holds; else it is overwritten.

struct Params {
    n: u32, i: u32, o: u32, ld: u32, col: u32, w_off: u32,
    r: u32, low_off: u32, low_ld: u32, low_scale: f32, scale: f32, flags: u32,
}
@group(1) @binding(0) var<uniform> p: Params;

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>; // x forward, dy backward
@group(0) @binding(2) var<storage, read> t: array<f32>;
@group(0) @binding(3) var<storage, read> low: array<vec4<f32>>;
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
        var a = c[m] * p.scale;
        for (var r = 0u; r < p.r; r += 1u) {
            a += p.low_scale * t[n * p.r + r] * low[(p.low_off + p.col + r * p.low_ld + o0) / 4u];
        }
        for (var j = 0u; j < 4u; j += 1u) {
            if (o0 + j >= p.o) { break; }
            let o = p.col + o0 + j;
            var v = a[j];
            if ((p.flags & 1u) != 0u) { v += bias[o]; }
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
        var a = c[m];
        for (var r = 0u; r < p.r; r += 1u) {
            a += p.low_scale * t[n * p.r + r] * low[(p.low_off + r * p.low_ld + col) / 4u];
        }
        let at = (n * p.i + col) / 4u;
        if ((p.flags & 4u) != 0u) { a += dx[at]; }
        dx[at] = a;
    }
}
