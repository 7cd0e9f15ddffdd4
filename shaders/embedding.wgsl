// Rows of a packed matrix: token embeddings, scaled, and learned positions, which are added.
//
// forward:  x[n,:] (+)= scale·W[ids[n] − row0, :] where row0 ≤ ids[n] < row0 + rows; other rows are left alone
//
// ids:[N]  W:[rows, C] (a shard that starts at row0)  x:[N,C], C a multiple of 4
// x is added to when accumulate is 1, else overwritten.
// Dispatch: x over groups of 4 floats, 64 a workgroup, in strides. load_w is prepended.

struct Params { n: u32, c: u32, row0: u32, rows: u32, scale: f32, accumulate: u32, pad0: u32, pad1: u32 }
@group(1) @binding(0) var<uniform> p: Params;
@group(0) @binding(0) var<storage, read> ids: array<u32>;
@group(0) @binding(2) var<storage, read_write> x: array<vec4<f32>>;

@compute @workgroup_size(64)
fn forward(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let c4 = p.c / 4u;
    for (var k = id.x; k < p.n * c4; k += groups.x * 64u) {
        let row = ids[k / c4] - p.row0; // wraps to a large number below row0
        if (row < p.rows) {
            var v = p.scale * load_w(row, k % c4 * 4u, p.c, 0u);
            if (p.accumulate == 1u) { v += x[k]; }
            x[k] = v;
        }
    }
}
