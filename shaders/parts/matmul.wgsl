// Products with a frozen matrix W:[O,I].
//
// forward:   y[n, col+o] = scale·Σ_i x[n,i]·W[o,i] + low + bias[bias_off+o] + res[n, col+o] (+ y)
// backward:  dx[n, i]    = Σ_o dy[n, col+o]·W[o,i] + low (+ dx)
// low:       s·Σ_r t[n, t+r]·F[r, c−col] at column c of y or dx, for each factor F:[rank, width] that has the column
//
// x, dx:[N,I]  y, dy, res:[N,ld]  t:[N,t_ld]  F at float `off` of flat
// I, ld, every col and width and (in backward) O are multiples of 4.
// flags: 1 adds bias, 2 adds res, 4 adds to what y (dx) holds; else it is overwritten.

#include factor
struct Params {
    n: u32, i: u32, o: u32, ld: u32, col: u32, w_off: u32, scale: f32, flags: u32,
    bias_off: u32, t_ld: u32, range: f32, pad: u32, factors: array<Factor, 3>,
}
@group(1) @binding(0) var<uniform> p: Params;

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>; // x forward, dy backward
@group(0) @binding(2) var<storage, read> t: array<f32>;
@group(0) @binding(3) var<storage, read> flat: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> bias: array<f32>;
@group(0) @binding(5) var<storage, read> res: array<f32>;
@group(0) @binding(6) var<storage, read_write> y: array<f32>;
@group(0) @binding(4) var<storage, read_write> dx: array<vec4<f32>>;
