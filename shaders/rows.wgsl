// Rows of a trained table, put in by index, and their gradients: virtual tokens, prefixes, trained embeddings.
//
// forward:   x[n,:] = scale·table[off + index[n]·C + :] where index[n] is not NONE (added to x with ADD); other rows are
//            left alone
// backward:  grads[off + v·C + c] += scale·Σ_{n: index[n] = v} dx[n,c]; with CLEAR those rows of dx are then zero
//
// index:[N]  x, dx: C columns from col on of [N,ld]  table, grads: floats; C, ld, col and off multiples of 4
// Dispatch: x over groups of 4 floats of x, 64 a workgroup, in strides. The first row with an index sums all of its rows,
// so there are no two writers and the order of the sum is fixed.

const CLEAR: u32 = 1u;
const ADD: u32 = 2u;

struct Params { n: u32, c: u32, off: u32, flags: u32, scale: f32, ld: u32, col: u32 }
@group(1) @binding(0) var<uniform> p: Params;
@group(0) @binding(0) var<storage, read> index: array<u32>;
@group(0) @binding(1) var<storage, read> table: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> grads: array<vec4<f32>>;

@compute @workgroup_size(64)
fn forward(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let c4 = p.c / 4u;
    for (var k = id.x; k < p.n * c4; k += groups.x * 64u) {
        let v = index[k / c4];
        if (v == NONE) { continue; }
        var y = p.scale * table[p.off / 4u + v * c4 + k % c4];
        let at = (k / c4 * p.ld + p.col) / 4u + k % c4;
        if ((p.flags & ADD) != 0u) { y += x[at]; }
        x[at] = y;
    }
}

@compute @workgroup_size(64)
fn backward(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let c4 = p.c / 4u;
    for (var k = id.x; k < p.n * c4; k += groups.x * 64u) {
        let v = index[k / c4];
        if (v == NONE) { continue; }
        var first = true;
        for (var m = 0u; m < k / c4; m += 1u) {
            if (index[m] == v) { first = false; break; }
        }
        if (!first) { continue; }
        var s = vec4<f32>();
        for (var m = k / c4; m < p.n; m += 1u) {
            if (index[m] != v) { continue; }
            let at = (m * p.ld + p.col) / 4u + k % c4;
            s += x[at];
            if ((p.flags & CLEAR) != 0u) { x[at] = vec4<f32>(); }
        }
        grads[p.off / 4u + v * c4 + k % c4] += p.scale * s;
    }
}
