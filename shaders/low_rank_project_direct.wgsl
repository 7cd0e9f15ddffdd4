// x projected by the factors F:[rank, width] of low-rank terms; 8 × 8 values of t an invocation.
// Dispatch: x over blocks of 8 rows, WG a workgroup, y over blocks of 8 columns of t.

#include low_rank_project

@compute @workgroup_size(WG)
fn project(@builtin(global_invocation_id) id: vec3<u32>) {
    let n0 = id.x * 8u;
    let c0 = id.y * 8u;
    if (n0 >= p.n) { return; }
    let last = p.n - 1u;
    let l4 = p.ld / 4u;
#for m in 8
    var c{m}a = vec4<f32>(); var c{m}b = vec4<f32>();
#end
    var mine = vec2<u32>(~0u, 0u); // the columns of t that have a factor
    for (var k = 0u; k < 3u; k += 1u) {
        let f = p.factors[k];
        if (f.rank == 0u || f.t >= c0 + 8u || f.t + f.rank <= c0) { continue; }
        mine = vec2<u32>(min(mine.x, f.t), max(mine.y, f.t + f.rank));
#for m in 8
        let x{m} = min(n0 + {m}u, last) * l4 + f.col / 4u;
        let f{m} = row(f, c0 + {m}u);
#end
        let sa = vec4<f32>(share(f, c0), share(f, c0 + 1u), share(f, c0 + 2u), share(f, c0 + 3u));
        let sb = vec4<f32>(share(f, c0 + 4u), share(f, c0 + 5u), share(f, c0 + 6u), share(f, c0 + 7u));
        for (var i = 0u; i < f.width / 4u; i += 1u) {
#for j in 8
            let b{j} = flat[f{j} + i];
#end
#for m in 8
            let a{m} = x[x{m} + i];
            c{m}a += sa * vec4<f32>(dot(a{m}, b0), dot(a{m}, b1), dot(a{m}, b2), dot(a{m}, b3));
            c{m}b += sb * vec4<f32>(dot(a{m}, b4), dot(a{m}, b5), dot(a{m}, b6), dot(a{m}, b7));
#end
        }
    }
    var c = array<vec4<f32>, 16>(
#for m in 8
        c{m}a, c{m}b,
#end
    );
    for (var m = 0u; m < 8u && n0 + m < p.n; m += 1u) {
        for (var j = 0u; j < 8u; j += 1u) {
            if (c0 + j < mine.x || c0 + j >= mine.y) { continue; }
            t[(n0 + m) * p.t_ld + c0 + j] = select(c[2u * m + 1u][j & 3u], c[2u * m][j & 3u], j < 4u);
        }
    }
}
