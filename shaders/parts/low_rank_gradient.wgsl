// The gradients of the factors of low-rank terms, added into the flat buffer.
//
// gradient:  grads[off + r·width + i] += scale·Σ_n t[n, t+r]·x[n, col+i]  for the factors `first` with t0 and x0, and for
//            the factors `second` with t1 and x1
//
// t:[N,t_ld]  x:[N,x_ld]; x_ld, col and width are multiples of 4

#include factor
struct Params {
    n: u32, t0_ld: u32, x0_ld: u32, t1_ld: u32, x1_ld: u32, pad0: u32, pad1: u32, pad2: u32,
    first: array<Factor, 3>, second: array<Factor, 3>,
}
@group(1) @binding(0) var<uniform> p: Params;
@group(0) @binding(0) var<storage, read> t0: array<f32>;
@group(0) @binding(1) var<storage, read> x0: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> t1: array<f32>;
@group(0) @binding(3) var<storage, read> x1: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> grads: array<f32>;

// The factors are counted through, each with its blocks of so many columns: which one block y falls to (6: none), and which
// of its blocks that is.
fn find(y: u32, columns: u32) -> vec2<u32> {
    var block = y;
    for (var k = 0u; k < 6u; k += 1u) {
        let f = factor(k);
        let blocks = select((f.width + columns - 1u) / columns, 0u, f.rank == 0u);
        if (block < blocks) { return vec2<u32>(k, block); }
        block -= blocks;
    }
    return vec2<u32>(6u, 0u);
}

fn factor(k: u32) -> Factor {
    if (k < 3u) { return p.first[k]; }
    return p.second[min(k, 5u) - 3u];
}
