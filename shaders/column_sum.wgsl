// Sums over rows: the gradient of a gain (p = dy, q = what it multiplied) or of a bias (no q).
//
// accumulate:  out[off + c] (+)= Σ_n p[n,c]·q[n,c], or Σ_n p[n,c] without q
//
// p, q: `heads` times C columns from col on of [N,ld], each head a row of its own in the sum  out: floats
// Dispatch: x over columns, 64 a workgroup.
// out is added to with the flag ACCUMULATE, else overwritten.

const PRODUCT: u32 = 1u;
const ACCUMULATE: u32 = 4u;

struct Params {
    n: u32, c: u32, off: u32, flags: u32, heads: u32, ld: u32, col: u32, q_ld: u32, q_col: u32,
}
@group(1) @binding(0) var<uniform> p: Params;
@group(0) @binding(0) var<storage, read> a: array<f32>;
@group(0) @binding(1) var<storage, read> q: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(64)
fn accumulate(@builtin(global_invocation_id) id: vec3<u32>) {
    let c = id.x;
    if (c >= p.c) { return; }
    var s = 0.0;
    for (var n = 0u; n < p.n; n += 1u) {
        for (var h = 0u; h < p.heads; h += 1u) {
            var v = a[n * p.ld + p.col + h * p.c + c];
            if ((p.flags & PRODUCT) != 0u) { v *= q[n * p.q_ld + p.q_col + h * p.c + c]; }
            s += v;
        }
    }
    if ((p.flags & ACCUMULATE) != 0u) { s += out[p.off + c]; }
    out[p.off + c] = s;
}
