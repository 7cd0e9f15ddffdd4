// RMSNorm with a frozen weight.
//
// forward:   y[n,c] = x[n,c]·s_n·w[c] (+ residual[n,c]),  s_n = 1/√(Σ_c x²/C + eps)
// backward:  dx[n,c] (+)= s_n·(w[c]·dy[n,c] − x[n,c]·s_n²·Σ_j w[j]·dy[n,j]·x[n,j] / C)
//
// x, residual, y, dy, dx:[N,C], or with heads: row n is head n mod heads, at col of the floats from n/heads·ld on
// w:[C]; C, ld and col are multiples of 4
// y is overwritten. ADD: forward adds the residual, which is not read otherwise; backward adds to dx, which is overwritten
// otherwise. NORMED: backward leaves forward's y in dy, for gradients that come after. backward_in_place overwrites dy
// with dx.

const ADD: u32 = 1u;
const NORMED: u32 = 2u;

struct Params { n: u32, c: u32, eps: f32, flags: u32, heads: u32, ld: u32, col: u32 }
@group(1) @binding(0) var<uniform> p: Params;
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> w: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> residual: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> dy: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> dx: array<vec4<f32>>;

// Where row n begins.
fn place(n: u32) -> u32 { return (n / p.heads * p.ld + p.col + n % p.heads * p.c) / 4u; }
