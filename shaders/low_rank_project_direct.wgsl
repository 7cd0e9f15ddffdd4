// x projected by the factors F:[rank, width] of low-rank terms; 8 × 8 values of t an invocation.
//
// project:  t[n, c] = Σ_F scale·Σ_i x[n, col+i]·F[c−t, i]  over the factors that have column c: t ≤ c < t + rank
//
// x:[N,ld]  t:[N,t_ld]  F at float `off` of flat; ld, col, width and off are multiples of 4
// Dispatch: x over blocks of 8 rows, 32 a workgroup, y over blocks of 8 columns of t.
// The columns of factors are overwritten.

struct Factor { off: u32, rank: u32, t: u32, col: u32, width: u32, scale: f32, pad0: u32, pad1: u32 }
struct Params { n: u32, ld: u32, t_ld: u32, pad: u32, factors: array<Factor, 3> }
@group(1) @binding(0) var<uniform> p: Params;
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> flat: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> t: array<f32>;

// The factor of column c of t: 0 where it is not this one's.
fn share(f: Factor, c: u32) -> f32 { return select(0.0, f.scale, c >= f.t && c < f.t + f.rank); }

// Where the row of the factor for column c begins; beyond the edge its last or first, whose share is 0.
fn row(f: Factor, c: u32) -> u32 { return (f.off + min(max(c, f.t) - f.t, f.rank - 1u) * f.width) / 4u; }

@compute @workgroup_size(32)
fn project(@builtin(global_invocation_id) id: vec3<u32>) {
    let n0 = id.x * 8u;
    let c0 = id.y * 8u;
    if (n0 >= p.n) { return; }
    let last = p.n - 1u;
    let l4 = p.ld / 4u;
    var c0a = vec4<f32>(); var c0b = vec4<f32>();
    var c1a = vec4<f32>(); var c1b = vec4<f32>();
    var c2a = vec4<f32>(); var c2b = vec4<f32>();
    var c3a = vec4<f32>(); var c3b = vec4<f32>();
    var c4a = vec4<f32>(); var c4b = vec4<f32>();
    var c5a = vec4<f32>(); var c5b = vec4<f32>();
    var c6a = vec4<f32>(); var c6b = vec4<f32>();
    var c7a = vec4<f32>(); var c7b = vec4<f32>();
    var mine = vec2<u32>(~0u, 0u); // the columns of t that have a factor
    for (var k = 0u; k < 3u; k += 1u) {
        let f = p.factors[k];
        if (f.rank == 0u || f.t >= c0 + 8u || f.t + f.rank <= c0) { continue; }
        mine = vec2<u32>(min(mine.x, f.t), max(mine.y, f.t + f.rank));
        let x0 = min(n0 + 0u, last) * l4 + f.col / 4u; let x1 = min(n0 + 1u, last) * l4 + f.col / 4u;
        let x2 = min(n0 + 2u, last) * l4 + f.col / 4u; let x3 = min(n0 + 3u, last) * l4 + f.col / 4u;
        let x4 = min(n0 + 4u, last) * l4 + f.col / 4u; let x5 = min(n0 + 5u, last) * l4 + f.col / 4u;
        let x6 = min(n0 + 6u, last) * l4 + f.col / 4u; let x7 = min(n0 + 7u, last) * l4 + f.col / 4u;
        let f0 = row(f, c0 + 0u); let f1 = row(f, c0 + 1u); let f2 = row(f, c0 + 2u); let f3 = row(f, c0 + 3u);
        let f4 = row(f, c0 + 4u); let f5 = row(f, c0 + 5u); let f6 = row(f, c0 + 6u); let f7 = row(f, c0 + 7u);
        let sa = vec4<f32>(share(f, c0), share(f, c0 + 1u), share(f, c0 + 2u), share(f, c0 + 3u));
        let sb = vec4<f32>(share(f, c0 + 4u), share(f, c0 + 5u), share(f, c0 + 6u), share(f, c0 + 7u));
        for (var i = 0u; i < f.width / 4u; i += 1u) {
            let b0 = flat[f0 + i]; let b1 = flat[f1 + i]; let b2 = flat[f2 + i]; let b3 = flat[f3 + i];
            let b4 = flat[f4 + i]; let b5 = flat[f5 + i]; let b6 = flat[f6 + i]; let b7 = flat[f7 + i];
            let a0 = x[x0 + i];
            c0a += sa * vec4<f32>(dot(a0, b0), dot(a0, b1), dot(a0, b2), dot(a0, b3));
            c0b += sb * vec4<f32>(dot(a0, b4), dot(a0, b5), dot(a0, b6), dot(a0, b7));
            let a1 = x[x1 + i];
            c1a += sa * vec4<f32>(dot(a1, b0), dot(a1, b1), dot(a1, b2), dot(a1, b3));
            c1b += sb * vec4<f32>(dot(a1, b4), dot(a1, b5), dot(a1, b6), dot(a1, b7));
            let a2 = x[x2 + i];
            c2a += sa * vec4<f32>(dot(a2, b0), dot(a2, b1), dot(a2, b2), dot(a2, b3));
            c2b += sb * vec4<f32>(dot(a2, b4), dot(a2, b5), dot(a2, b6), dot(a2, b7));
            let a3 = x[x3 + i];
            c3a += sa * vec4<f32>(dot(a3, b0), dot(a3, b1), dot(a3, b2), dot(a3, b3));
            c3b += sb * vec4<f32>(dot(a3, b4), dot(a3, b5), dot(a3, b6), dot(a3, b7));
            let a4 = x[x4 + i];
            c4a += sa * vec4<f32>(dot(a4, b0), dot(a4, b1), dot(a4, b2), dot(a4, b3));
            c4b += sb * vec4<f32>(dot(a4, b4), dot(a4, b5), dot(a4, b6), dot(a4, b7));
            let a5 = x[x5 + i];
            c5a += sa * vec4<f32>(dot(a5, b0), dot(a5, b1), dot(a5, b2), dot(a5, b3));
            c5b += sb * vec4<f32>(dot(a5, b4), dot(a5, b5), dot(a5, b6), dot(a5, b7));
            let a6 = x[x6 + i];
            c6a += sa * vec4<f32>(dot(a6, b0), dot(a6, b1), dot(a6, b2), dot(a6, b3));
            c6b += sb * vec4<f32>(dot(a6, b4), dot(a6, b5), dot(a6, b6), dot(a6, b7));
            let a7 = x[x7 + i];
            c7a += sa * vec4<f32>(dot(a7, b0), dot(a7, b1), dot(a7, b2), dot(a7, b3));
            c7b += sb * vec4<f32>(dot(a7, b4), dot(a7, b5), dot(a7, b6), dot(a7, b7));
        }
    }
    var c = array<vec4<f32>, 16>(c0a, c0b, c1a, c1b, c2a, c2b, c3a, c3b, c4a, c4b, c5a, c5b, c6a, c6b, c7a, c7b);
    for (var m = 0u; m < 8u && n0 + m < p.n; m += 1u) {
        for (var j = 0u; j < 8u; j += 1u) {
            if (c0 + j < mine.x || c0 + j >= mine.y) { continue; }
            t[(n0 + m) * p.t_ld + c0 + j] = select(c[2u * m + 1u][j & 3u], c[2u * m][j & 3u], j < 4u);
        }
    }
}
