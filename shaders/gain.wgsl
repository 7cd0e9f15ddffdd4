// A gain for each column, with bias and residual: what learned vectors do to a linear's input or output.
//
// forward:   y[n,c] = g[off + c]·x[n,c] + bias[c] + residual[n,c]; flags say which of the last two are there
// backward:  dx[n,c] (+)= g[off + c]·dy[n,c]
//
// x, y, residual, dy, dx:[N,C]  bias:[C]  g: floats; C and off multiples of 4
// Dispatch: x over groups of 4 floats, 64 a workgroup, in strides.
// y is overwritten; dx is added to with the flag ACCUMULATE, else overwritten.

const BIAS: u32 = 1u;
const RESIDUAL: u32 = 2u;
const ACCUMULATE: u32 = 4u;

struct Params { n: u32, c: u32, off: u32, flags: u32 }
@group(1) @binding(0) var<uniform> p: Params;
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> g: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> bias: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> residual: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> dx: array<vec4<f32>>;

@compute @workgroup_size(64)
fn forward(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let c4 = p.c / 4u;
    for (var k = id.x; k < p.n * c4; k += groups.x * 64u) {
        var v = g[p.off / 4u + k % c4] * x[k];
        if ((p.flags & BIAS) != 0u) { v += bias[k % c4]; }
        if ((p.flags & RESIDUAL) != 0u) { v += residual[k]; }
        y[k] = v;
    }
}

@compute @workgroup_size(64)
fn backward(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let c4 = p.c / 4u;
    for (var k = id.x; k < p.n * c4; k += groups.x * 64u) {
        var v = g[p.off / 4u + k % c4] * x[k];
        if ((p.flags & ACCUMULATE) != 0u) { v += dx[k]; }
        dx[k] = v;
    }
}
