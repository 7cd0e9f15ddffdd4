// x projected by the factors F:[rank, width] of low-rank terms, staged through workgroup memory: 32 × 32 values of t a
// workgroup, 2 × 2 an invocation, 16 columns of x at a time.
// Dispatch: x over blocks of 32 rows, y over blocks of 32 columns of t.

#include low_rank_project

const TILE: u32 = 32u;
const K4: u32 = 4u; // vec4s of a row that are staged
var<workgroup> xs: array<vec4<f32>, 128>; // [TILE][K4]
var<workgroup> fs: array<vec4<f32>, 128>;

@compute @workgroup_size(16, 16)
fn project(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) id: vec3<u32>) {
    let n0 = group.x * TILE;
    let c0 = group.y * TILE;
    let lane = id.y * 16u + id.x;
    // The first half of the invocations stages x, the other the factor: one vec4 of one row each.
    let line = lane % 128u / K4;
    let part = lane % K4;
    var a = vec2<f32>(); // columns id.x and id.x + 16 of row id.y
    var b = vec2<f32>(); // of row id.y + 16
    var mine = vec2<u32>(~0u, 0u); // the columns of t that have a factor
    for (var k = 0u; k < 3u; k += 1u) {
        let f = p.factors[k];
        if (f.rank == 0u || f.t >= c0 + TILE || f.t + f.rank <= c0) { continue; }
        mine = vec2<u32>(min(mine.x, f.t), max(mine.y, f.t + f.rank));
        let x_row = (min(n0 + line, p.n - 1u) * p.ld + f.col) / 4u;
        let f_row = row(f, c0 + line);
        let s = share(f, c0 + line);
        for (var i = 0u; i < f.width / 4u; i += K4) {
            let inside = i + part < f.width / 4u;
            var v = vec4<f32>();
            if (lane < 128u) {
                if (inside) { v = x[x_row + i + part]; }
                xs[line * K4 + part] = v;
            } else {
                if (inside) { v = s * flat[f_row + i + part]; }
                fs[line * K4 + part] = v;
            }
            workgroupBarrier();
            for (var j = 0u; j < K4; j += 1u) {
                let f0 = fs[id.x * K4 + j];
                let f1 = fs[(id.x + 16u) * K4 + j];
                let x0 = xs[id.y * K4 + j];
                let x1 = xs[(id.y + 16u) * K4 + j];
                a += vec2<f32>(dot(x0, f0), dot(x0, f1));
                b += vec2<f32>(dot(x1, f0), dot(x1, f1));
            }
            workgroupBarrier();
        }
    }
    for (var j = 0u; j < 2u; j += 1u) {
        let c = c0 + id.x + j * 16u;
        if (c < mine.x || c >= mine.y) { continue; }
        if (n0 + id.y < p.n) { t[(n0 + id.y) * p.t_ld + c] = a[j]; }
        if (n0 + id.y + 16u < p.n) { t[(n0 + id.y + 16u) * p.t_ld + c] = b[j]; }
    }
}
