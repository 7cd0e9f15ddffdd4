// The gradients of the factors F:[rank, width] of low-rank terms, added into the flat buffer; 8 × 4 values an invocation.
// Dispatch: x over blocks of 8 ranks, y over blocks of 4·WG columns (4 an invocation) of all factors, one after another.

#include low_rank_gradient

@compute @workgroup_size(WG)
fn gradient(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) id: vec3<u32>) {
    let found = find(group.y, 4u * WG);
    let k = found.x;
    let block = found.y;
    let f = factor(k);
    let r0 = group.x * 8u;
    let w0 = (block * WG + id.x) * 4u;
    if (k == 6u || r0 >= f.rank || w0 >= f.width) { return; }
    // Ranks beyond the edge repeat the last one; their results are not stored.
    let last = f.t + f.rank - 1u;
    let a = f.t + r0;
    let a1 = min(a + 1u, last); let a2 = min(a + 2u, last); let a3 = min(a + 3u, last);
    let a4 = min(a + 4u, last); let a5 = min(a + 5u, last); let a6 = min(a + 6u, last); let a7 = min(a + 7u, last);
    var c0 = vec4<f32>(); var c1 = vec4<f32>(); var c2 = vec4<f32>(); var c3 = vec4<f32>();
    var c4 = vec4<f32>(); var c5 = vec4<f32>(); var c6 = vec4<f32>(); var c7 = vec4<f32>();
    if (k < 3u) {
        for (var n = 0u; n < p.n; n += 1u) {
            let b = x0[(n * p.x0_ld + f.col + w0) / 4u];
            let at = n * p.t0_ld;
            c0 += t0[at + a] * b; c1 += t0[at + a1] * b; c2 += t0[at + a2] * b; c3 += t0[at + a3] * b;
            c4 += t0[at + a4] * b; c5 += t0[at + a5] * b; c6 += t0[at + a6] * b; c7 += t0[at + a7] * b;
        }
    } else {
        for (var n = 0u; n < p.n; n += 1u) {
            let b = x1[(n * p.x1_ld + f.col + w0) / 4u];
            let at = n * p.t1_ld;
            c0 += t1[at + a] * b; c1 += t1[at + a1] * b; c2 += t1[at + a2] * b; c3 += t1[at + a3] * b;
            c4 += t1[at + a4] * b; c5 += t1[at + a5] * b; c6 += t1[at + a6] * b; c7 += t1[at + a7] * b;
        }
    }
    var c = array<vec4<f32>, 8>(c0, c1, c2, c3, c4, c5, c6, c7);
    for (var j = 0u; j < 8u && r0 + j < f.rank; j += 1u) {
        for (var i = 0u; i < 4u; i += 1u) {
            grads[f.off + (r0 + j) * f.width + w0 + i] += f.scale * c[j][i];
        }
    }
}
