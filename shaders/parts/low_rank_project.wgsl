// x projected by the factors of low-rank terms.
//
// project:  t[n, c] = Σ_F scale·Σ_i x[n, col+i]·F[c−t, i]  over the factors that have column c: t ≤ c < t + rank
//
// x:[N,ld]  t:[N,t_ld]  F at float `off` of flat; ld, col, width and off are multiples of 4
// The columns of factors are overwritten.

#include factor
struct Params { n: u32, ld: u32, t_ld: u32, pad: u32, factors: array<Factor, 3> }
@group(1) @binding(0) var<uniform> p: Params;
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> flat: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> t: array<f32>;

// The factor of column c of t: 0 where it is not this one's.
fn share(f: Factor, c: u32) -> f32 { return select(0.0, f.scale, c >= f.t && c < f.t + f.rank); }

// Where the row of the factor for column c begins; beyond the edge its last or first, whose share is 0.
fn row(f: Factor, c: u32) -> u32 { return (f.off + min(max(c, f.t) - f.t, f.rank - 1u) * f.width) / 4u; }
