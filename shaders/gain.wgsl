// A gain for each column, with bias and residual: what learned vectors do to a linear's input or output.
//
// forward:   y[n,c] = g[off + c]·x[n,c] + bias[bias_off + c] + residual[n,c]; flags say which of the last two are there
// backward:  dx[n,c] (+)= g[off + c]·dy[n,c]
//
// forward's x and backward's dx:[N,C]  y, residual, dy: C columns from col on of [N,ld]  g, bias: floats
// C, ld, col and the offsets are multiples of 4.
// Dispatch: x over groups of 4 floats, 64 a workgroup, in strides.
// y is overwritten; dx is added to with the flag ACCUMULATE, else overwritten.

const BIAS: u32 = 1u;
const RESIDUAL: u32 = 2u;
const ACCUMULATE: u32 = 4u;

struct Params { n: u32, c: u32, off: u32, flags: u32, bias_off: u32, ld: u32, col: u32 }
@group(1) @binding(0) var<uniform> p: Params;
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> g: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> bias: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> residual: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> dx: array<vec4<f32>>;

// Where group k of 4 of [N,C] lies among the columns of a wider row.
fn wide(k: u32) -> u32 { return (k / (p.c / 4u) * p.ld + p.col) / 4u + k % (p.c / 4u); }

@compute @workgroup_size(64)
fn forward(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let c4 = p.c / 4u;
    for (var k = id.x; k < p.n * c4; k += groups.x * 64u) {
        var v = g[p.off / 4u + k % c4] * x[k];
        if ((p.flags & BIAS) != 0u) { v += bias[p.bias_off / 4u + k % c4]; }
        if ((p.flags & RESIDUAL) != 0u) { v += residual[wide(k)]; }
        y[wide(k)] = v;
    }
}

@compute @workgroup_size(64)
fn backward(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let c4 = p.c / 4u;
    for (var k = id.x; k < p.n * c4; k += groups.x * 64u) {
        var v = g[p.off / 4u + k % c4] * x[wide(k)];
        if ((p.flags & ACCUMULATE) != 0u) { v += dx[k]; }
        dx[k] = v;
    }
}
