// Rows by index: the supervised rows of a chunk, and their gradients spread back.
//
// forward:   y[m,:]  = x[index[first + m],:], or zeros where the index is NONE
// backward:  dx[n,:] = dy[inverse[n] − first,:] where first ≤ inverse[n] < first + M;
//            other rows: zeros when first = 0, else left alone
//
// index, inverse: words  x, dx:[N,C]  y, dy:[M,C], C a multiple of 4
// Dispatch: x over groups of 4 floats (of y, of dx), 64 a workgroup, in strides.

struct Params { n: u32, c: u32, first: u32, m: u32 }
@group(1) @binding(0) var<uniform> p: Params;
@group(0) @binding(0) var<storage, read> index: array<u32>;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>;

@compute @workgroup_size(64)
fn forward(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let c4 = p.c / 4u;
    for (var k = id.x; k < p.m * c4; k += groups.x * 64u) {
        let row = index[p.first + k / c4];
        if (row == NONE) { y[k] = vec4<f32>(); } else { y[k] = x[row * c4 + k % c4]; }
    }
}

@compute @workgroup_size(64)
fn backward(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let c4 = p.c / 4u;
    for (var k = id.x; k < p.n * c4; k += groups.x * 64u) {
        let m = index[k / c4] - p.first; // wraps to a large number below first; NONE stays large
        if (m < p.m) { y[k] = x[m * c4 + k % c4]; } else if (p.first == 0u) { y[k] = vec4<f32>(); }
    }
}
