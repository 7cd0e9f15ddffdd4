// Products with a frozen matrix W:[O,I] that have few outputs and a long inner index: 64 invocations share TALL × WIDE
// outputs, each taking every 64th vector of the inner index, and add up what they have in a fixed order.
// Dispatch: x over blocks of TALL rows, y over blocks of WIDE outputs. load_w is prepended.

#include matmul

const LENGTH: u32 = 64u;
var<workgroup> sums: array<vec4<f32>, LENGTH * TALL * WIDE / 4u>; // [TALL · WIDE / 4][LENGTH]

@compute @workgroup_size(64)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let n0 = group.x * TALL;
    let o0 = group.y * WIDE;
#for m in TALL
    let x{m} = min(n0 + {m}u, p.n - 1u) * (p.i / 4u);
#for j in WIDE by 4
    var c{m}_{j} = vec4<f32>();
#end
#end
    for (var k = lane; k < p.i / 4u; k += LENGTH) {
#for j in WIDE
        let b{j} = load_w(min(o0 + {j}u, p.o - 1u), k * 4u, p.i, p.w_off);
#end
#for m in TALL
        let a{m} = x[x{m} + k];
#for j in WIDE by 4
        c{m}_{j} += vec4<f32>(dot(a{m}, b{j}), dot(a{m}, b{j+1}), dot(a{m}, b{j+2}), dot(a{m}, b{j+3}));
#end
#end
    }
#for m in TALL
#for j in WIDE by 4
    sums[({m}u * WIDE + {j}u) / 4u * LENGTH + lane] = c{m}_{j};
#end
#end
    for (var half = LENGTH / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if (lane < half) {
            for (var v = lane; v < LENGTH * TALL * WIDE / 4u; v += LENGTH) { sums[v] += sums[v + half]; }
        }
    }
    workgroupBarrier();
    for (var c = lane; c < TALL * WIDE; c += LENGTH) {
        let n = n0 + c / WIDE;
        if (n >= p.n || o0 + c % WIDE >= p.o) { continue; }
        let o = p.col + o0 + c % WIDE;
        var v = sums[c / 4u * LENGTH][c & 3u] * p.scale;
        for (var k = 0u; k < 3u; k += 1u) {
            let f = p.factors[k];
            if (o < f.col || o >= f.col + f.width) { continue; }
            for (var r = 0u; r < f.rank; r += 1u) {
                let at = f.off + r * f.width + o - f.col;
                v += f.scale * t[n * p.t_ld + f.t + r] * flat[at / 4u][at & 3u];
            }
        }
        if ((p.flags & 1u) != 0u) { v += bias[p.bias_off + o - p.col]; }
        if ((p.flags & 2u) != 0u) { v += res[n * p.ld + o]; }
        if ((p.flags & 4u) != 0u) { v += y[n * p.ld + o]; }
        y[n * p.ld + o] = v;
    }
}
