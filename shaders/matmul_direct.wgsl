// Products with a frozen matrix W:[O,I], barrier-free: each invocation computes 8 × 8 outputs in registers.
//
// forward:   y[n, col+o] = scale·Σ_i x[n,i]·W[o,i] + low + bias[bias_off+o] + res[n, col+o] (+ y)
// backward:  dx[n, i]    = Σ_o dy[n, col+o]·W[o,i] + low (+ dx)
// low:       s·Σ_r t[n, t+r]·F[r, c−col] at column c of y or dx, for each factor F:[rank, width] that has the column
//
// x, dx:[N,I]  y, dy, res:[N,ld]  t:[N,t_ld]  F at float `off` of flat
// I, ld, every col and width and (in backward) O are multiples of 4.
// Dispatch: x over blocks of 8 rows, y over blocks of 8 outputs. WG_X × WG_Y and load_w are prepended.
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

// The block of 8 rows and of 8 outputs of an invocation. Software drivers run x in vector lanes and y in a loop, so the
// workgroup is a line, folded here.
fn block(group: vec3<u32>, lane: u32) -> vec2<u32> {
    return (group.xy * vec2<u32>(WG_X, WG_Y) + vec2<u32>(lane % WG_X, lane / WG_X)) * 8u;
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

@compute @workgroup_size(WG_X * WG_Y)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let n0 = block(group, lane).x;
    let o0 = block(group, lane).y;
    if (n0 >= p.n || o0 >= p.o) { return; }
    // Rows beyond the edge repeat the last one; their results are not stored.
    let last_n = p.n - 1u;
    let last_o = p.o - 1u;
    let k4 = p.i / 4u;
    let x0 = min(n0 + 0u, last_n) * k4;
    let x1 = min(n0 + 1u, last_n) * k4;
    let x2 = min(n0 + 2u, last_n) * k4;
    let x3 = min(n0 + 3u, last_n) * k4;
    let x4 = min(n0 + 4u, last_n) * k4;
    let x5 = min(n0 + 5u, last_n) * k4;
    let x6 = min(n0 + 6u, last_n) * k4;
    let x7 = min(n0 + 7u, last_n) * k4;
    let w0 = min(o0 + 0u, last_o);
    let w1 = min(o0 + 1u, last_o);
    let w2 = min(o0 + 2u, last_o);
    let w3 = min(o0 + 3u, last_o);
    let w4 = min(o0 + 4u, last_o);
    let w5 = min(o0 + 5u, last_o);
    let w6 = min(o0 + 6u, last_o);
    let w7 = min(o0 + 7u, last_o);
    var c0a = vec4<f32>(); var c0b = vec4<f32>();
    var c1a = vec4<f32>(); var c1b = vec4<f32>();
    var c2a = vec4<f32>(); var c2b = vec4<f32>();
    var c3a = vec4<f32>(); var c3b = vec4<f32>();
    var c4a = vec4<f32>(); var c4b = vec4<f32>();
    var c5a = vec4<f32>(); var c5b = vec4<f32>();
    var c6a = vec4<f32>(); var c6b = vec4<f32>();
    var c7a = vec4<f32>(); var c7b = vec4<f32>();
    for (var k = 0u; k < k4; k += 1u) {
        let b0 = load_w(w0, k * 4u, p.i, p.w_off);
        let b1 = load_w(w1, k * 4u, p.i, p.w_off);
        let b2 = load_w(w2, k * 4u, p.i, p.w_off);
        let b3 = load_w(w3, k * 4u, p.i, p.w_off);
        let b4 = load_w(w4, k * 4u, p.i, p.w_off);
        let b5 = load_w(w5, k * 4u, p.i, p.w_off);
        let b6 = load_w(w6, k * 4u, p.i, p.w_off);
        let b7 = load_w(w7, k * 4u, p.i, p.w_off);
        let a0 = x[x0 + k];
        c0a += vec4<f32>(dot(a0, b0), dot(a0, b1), dot(a0, b2), dot(a0, b3));
        c0b += vec4<f32>(dot(a0, b4), dot(a0, b5), dot(a0, b6), dot(a0, b7));
        let a1 = x[x1 + k];
        c1a += vec4<f32>(dot(a1, b0), dot(a1, b1), dot(a1, b2), dot(a1, b3));
        c1b += vec4<f32>(dot(a1, b4), dot(a1, b5), dot(a1, b6), dot(a1, b7));
        let a2 = x[x2 + k];
        c2a += vec4<f32>(dot(a2, b0), dot(a2, b1), dot(a2, b2), dot(a2, b3));
        c2b += vec4<f32>(dot(a2, b4), dot(a2, b5), dot(a2, b6), dot(a2, b7));
        let a3 = x[x3 + k];
        c3a += vec4<f32>(dot(a3, b0), dot(a3, b1), dot(a3, b2), dot(a3, b3));
        c3b += vec4<f32>(dot(a3, b4), dot(a3, b5), dot(a3, b6), dot(a3, b7));
        let a4 = x[x4 + k];
        c4a += vec4<f32>(dot(a4, b0), dot(a4, b1), dot(a4, b2), dot(a4, b3));
        c4b += vec4<f32>(dot(a4, b4), dot(a4, b5), dot(a4, b6), dot(a4, b7));
        let a5 = x[x5 + k];
        c5a += vec4<f32>(dot(a5, b0), dot(a5, b1), dot(a5, b2), dot(a5, b3));
        c5b += vec4<f32>(dot(a5, b4), dot(a5, b5), dot(a5, b6), dot(a5, b7));
        let a6 = x[x6 + k];
        c6a += vec4<f32>(dot(a6, b0), dot(a6, b1), dot(a6, b2), dot(a6, b3));
        c6b += vec4<f32>(dot(a6, b4), dot(a6, b5), dot(a6, b6), dot(a6, b7));
        let a7 = x[x7 + k];
        c7a += vec4<f32>(dot(a7, b0), dot(a7, b1), dot(a7, b2), dot(a7, b3));
        c7b += vec4<f32>(dot(a7, b4), dot(a7, b5), dot(a7, b6), dot(a7, b7));
    }
    var c = array<vec4<f32>, 16>(c0a, c0b, c1a, c1b, c2a, c2b, c3a, c3b, c4a, c4b, c5a, c5b, c6a, c6b, c7a, c7b);
    for (var m = 0u; m < 8u; m += 1u) {
        let n = n0 + m;
        if (n >= p.n) { break; }
        let a = c[2u * m] * p.scale + low(n, p.col + o0);
        let b = c[2u * m + 1u] * p.scale + low(n, p.col + o0 + 4u);
        for (var j = 0u; j < 8u; j += 1u) {
            if (o0 + j >= p.o) { break; }
            let o = p.col + o0 + j;
            var v = select(b[j & 3u], a[j & 3u], j < 4u);
            if ((p.flags & 1u) != 0u) { v += bias[p.bias_off + o - p.col]; }
            if ((p.flags & 2u) != 0u) { v += res[n * p.ld + o]; }
            if ((p.flags & 4u) != 0u) { v += y[n * p.ld + o]; }
            y[n * p.ld + o] = v;
        }
    }
}

@compute @workgroup_size(WG_X * WG_Y)
fn backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let n0 = block(group, lane).x;
    let i0 = block(group, lane).y;
    if (n0 >= p.n || i0 >= p.i) { return; }
    let last_n = p.n - 1u;
    let i1 = min(i0 + 4u, p.i - 4u);
    let x0 = (min(n0 + 0u, last_n) * p.ld + p.col) / 4u;
    let x1 = (min(n0 + 1u, last_n) * p.ld + p.col) / 4u;
    let x2 = (min(n0 + 2u, last_n) * p.ld + p.col) / 4u;
    let x3 = (min(n0 + 3u, last_n) * p.ld + p.col) / 4u;
    let x4 = (min(n0 + 4u, last_n) * p.ld + p.col) / 4u;
    let x5 = (min(n0 + 5u, last_n) * p.ld + p.col) / 4u;
    let x6 = (min(n0 + 6u, last_n) * p.ld + p.col) / 4u;
    let x7 = (min(n0 + 7u, last_n) * p.ld + p.col) / 4u;
    var c0a = vec4<f32>(); var c0b = vec4<f32>();
    var c1a = vec4<f32>(); var c1b = vec4<f32>();
    var c2a = vec4<f32>(); var c2b = vec4<f32>();
    var c3a = vec4<f32>(); var c3b = vec4<f32>();
    var c4a = vec4<f32>(); var c4b = vec4<f32>();
    var c5a = vec4<f32>(); var c5b = vec4<f32>();
    var c6a = vec4<f32>(); var c6b = vec4<f32>();
    var c7a = vec4<f32>(); var c7b = vec4<f32>();
    for (var k = 0u; k < p.o; k += 4u) {
        let b0 = load_w(k + 0u, i0, p.i, p.w_off); let d0 = load_w(k + 0u, i1, p.i, p.w_off);
        let b1 = load_w(k + 1u, i0, p.i, p.w_off); let d1 = load_w(k + 1u, i1, p.i, p.w_off);
        let b2 = load_w(k + 2u, i0, p.i, p.w_off); let d2 = load_w(k + 2u, i1, p.i, p.w_off);
        let b3 = load_w(k + 3u, i0, p.i, p.w_off); let d3 = load_w(k + 3u, i1, p.i, p.w_off);
        let a0 = x[x0 + k / 4u];
        c0a += a0.x * b0 + a0.y * b1 + a0.z * b2 + a0.w * b3;
        c0b += a0.x * d0 + a0.y * d1 + a0.z * d2 + a0.w * d3;
        let a1 = x[x1 + k / 4u];
        c1a += a1.x * b0 + a1.y * b1 + a1.z * b2 + a1.w * b3;
        c1b += a1.x * d0 + a1.y * d1 + a1.z * d2 + a1.w * d3;
        let a2 = x[x2 + k / 4u];
        c2a += a2.x * b0 + a2.y * b1 + a2.z * b2 + a2.w * b3;
        c2b += a2.x * d0 + a2.y * d1 + a2.z * d2 + a2.w * d3;
        let a3 = x[x3 + k / 4u];
        c3a += a3.x * b0 + a3.y * b1 + a3.z * b2 + a3.w * b3;
        c3b += a3.x * d0 + a3.y * d1 + a3.z * d2 + a3.w * d3;
        let a4 = x[x4 + k / 4u];
        c4a += a4.x * b0 + a4.y * b1 + a4.z * b2 + a4.w * b3;
        c4b += a4.x * d0 + a4.y * d1 + a4.z * d2 + a4.w * d3;
        let a5 = x[x5 + k / 4u];
        c5a += a5.x * b0 + a5.y * b1 + a5.z * b2 + a5.w * b3;
        c5b += a5.x * d0 + a5.y * d1 + a5.z * d2 + a5.w * d3;
        let a6 = x[x6 + k / 4u];
        c6a += a6.x * b0 + a6.y * b1 + a6.z * b2 + a6.w * b3;
        c6b += a6.x * d0 + a6.y * d1 + a6.z * d2 + a6.w * d3;
        let a7 = x[x7 + k / 4u];
        c7a += a7.x * b0 + a7.y * b1 + a7.z * b2 + a7.w * b3;
        c7b += a7.x * d0 + a7.y * d1 + a7.z * d2 + a7.w * d3;
    }
    var c = array<vec4<f32>, 16>(c0a, c0b, c1a, c1b, c2a, c2b, c3a, c3b, c4a, c4b, c5a, c5b, c6a, c6b, c7a, c7b);
    for (var m = 0u; m < 8u; m += 1u) {
        let n = n0 + m;
        if (n >= p.n) { break; }
        var a = c[2u * m] + low(n, i0);
        var b = c[2u * m + 1u] + low(n, i1);
        let at = (n * p.i + i0) / 4u;
        let keep = (p.flags & 4u) != 0u;
        if (keep) { a += dx[at]; }
        dx[at] = a;
        if (i0 + 4u < p.i) {
            if (keep) { b += dx[at + 1u]; }
            dx[at + 1u] = b;
        }
    }
}
