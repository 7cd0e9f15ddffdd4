// Rows by index.
//
// forward:  y[m,:] = x[index[first + m],:], or zeros where the index is NONE
//
// index: words  x:[·,C]  y:[M,C], C a multiple of 4
// Dispatch: x over groups of 4 floats, 64 a workgroup, in strides. y is overwritten.

struct Params { n: u32, c: u32, first: u32, pad: u32 }
@group(1) @binding(0) var<uniform> p: Params;
@group(0) @binding(0) var<storage, read> index: array<u32>;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>;

@compute @workgroup_size(64)
fn forward(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let c4 = p.c / 4u;
    for (var k = id.x; k < p.n * c4; k += groups.x * 64u) {
        let row = index[p.first + k / c4];
        if (row == NONE) { y[k] = vec4<f32>(); } else { y[k] = x[row * c4 + k % c4]; }
    }
}
