// The gradient of a low-rank factor, added into the flat gradient buffer; 8 × 4 outputs an invocation.
//
// accumulate:  out[off + r·W + w] += scale·Σ_n p[n,r]·q[n,w]
//
// p: the first R columns of [N,ld]  q:[N,W], W a multiple of 4  out: floats
// Dispatch: x over blocks of 8 ranks, y over blocks of 128 columns (32 invocations of 4).

struct Params { n: u32, r: u32, w: u32, off: u32, scale: f32, ld: u32 }
@group(1) @binding(0) var<uniform> p: Params;
@group(0) @binding(0) var<storage, read> a: array<f32>;
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(32)
fn accumulate(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) id: vec3<u32>) {
    let r0 = group.x * 8u;
    let w0 = (group.y * 32u + id.x) * 4u;
    if (r0 >= p.r || w0 >= p.w) { return; }
    // Ranks beyond the edge repeat the last one; their results are not stored.
    let last = p.r - 1u;
    let r1 = min(r0 + 1u, last); let r2 = min(r0 + 2u, last); let r3 = min(r0 + 3u, last);
    let r4 = min(r0 + 4u, last); let r5 = min(r0 + 5u, last); let r6 = min(r0 + 6u, last); let r7 = min(r0 + 7u, last);
    var c0 = vec4<f32>(); var c1 = vec4<f32>(); var c2 = vec4<f32>(); var c3 = vec4<f32>();
    var c4 = vec4<f32>(); var c5 = vec4<f32>(); var c6 = vec4<f32>(); var c7 = vec4<f32>();
    for (var n = 0u; n < p.n; n += 1u) {
        let b = q[(n * p.w + w0) / 4u];
        let at = n * p.ld;
        c0 += a[at + r0] * b; c1 += a[at + r1] * b; c2 += a[at + r2] * b; c3 += a[at + r3] * b;
        c4 += a[at + r4] * b; c5 += a[at + r5] * b; c6 += a[at + r6] * b; c7 += a[at + r7] * b;
    }
    var c = array<vec4<f32>, 8>(c0, c1, c2, c3, c4, c5, c6, c7);
    for (var j = 0u; j < 8u; j += 1u) {
        if (r0 + j >= p.r) { break; }
        for (var k = 0u; k < 4u; k += 1u) {
            out[p.off + (r0 + j) * p.w + w0 + k] += p.scale * c[j][k];
        }
    }
}
