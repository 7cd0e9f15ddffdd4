// Products with a frozen matrix W:[O,I], barrier-free: each invocation computes TALL × WIDE outputs in registers.
// Dispatch: x over blocks of TALL rows, y over blocks of WIDE outputs. WG_X × WG_Y and load_w are prepended.
//
// With LANES > 1 that many invocations, a subgroup, share their outputs and differ in their rows: each loads one part of
// W and hands it to the others. Software drivers load lane by lane, so that what all lanes need costs most.

#include matmul

const STRIDE: u32 = 1u; // from four outputs to the next of an invocation, in fours

// The block of rows and of outputs of an invocation. Software drivers run x in vector lanes and y in a loop, so the
// workgroup is a line, folded here.
fn block(group: vec3<u32>, lane: u32) -> vec2<u32> {
    return (group.xy * vec2<u32>(WG_X, WG_Y) + vec2<u32>(lane % WG_X, lane / WG_X)) * vec2<u32>(TALL, WIDE);
}

@compute @workgroup_size(WG_X * WG_Y)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row0 = block(group, lane).x;
    let col0 = block(group, lane).y;
    let part = lane % LANES;
#if SINGLE
    if (row0 >= p.n || col0 >= p.o) { return; }
#end
    // Rows beyond the edge repeat the last one; their results are not stored.
    let last_n = p.n - 1u;
    let last_o = p.o - 1u;
    let k4 = p.i / 4u;
#for m in TALL
    let n{m} = min(row0 + {m}u, last_n);
    let x{m} = n{m} * k4;
#for j in WIDE by 4
    var c{m}_{j} = vec4<f32>();
#end
#end
#for s in WIDE by LANES
    let w{s} = min(col0 + {s}u + part, last_o);
#end
    for (var k = 0u; k < k4; k += 1u) {
#for s in WIDE by LANES
        let q{s} = load_w(w{s}, k * 4u, p.i, p.w_off);
#if SINGLE
        let b{s} = q{s};
#end
#if SHARED
#for l in LANES
        let b{s+l} = subgroupBroadcast(q{s}, {l}u);
#end
#end
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
    c{m}_{j} *= p.scale;
#end
#end
    let first = p.col + col0;
#include low_rank_term
    var c = array<vec4<f32>, TALL * WIDE / 4>(
#for m in TALL
#for j in WIDE by 4
        c{m}_{j},
#end
#end
    );
    // Read once: software drivers read parameters as slowly as all else.
    let flags = p.flags;
    let rows = min(TALL, p.n - min(row0, p.n));
    let outs = min(WIDE, p.o - min(col0, p.o));
    let b = p.bias_off + col0;
    for (var m = 0u; m < rows; m += 1u) {
        let at = (row0 + m) * p.ld + p.col + col0;
        for (var j = 0u; j < outs; j += 1u) {
            var v = c[(m * WIDE + j) / 4u][j & 3u];
            if ((flags & 1u) != 0u) { v += bias[b + j]; }
            if ((flags & 2u) != 0u) { v += res[at + j]; }
            if ((flags & 4u) != 0u) { v += y[at + j]; }
            y[at + j] = v;
        }
    }
}

@compute @workgroup_size(WG_X * WG_Y)
fn backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row0 = block(group, lane).x;
    let col0 = block(group, lane).y;
    let part = lane % LANES;
#if SINGLE
    if (row0 >= p.n || col0 >= p.i) { return; }
#end
    let last_n = p.n - 1u;
    let last_i = p.i - 4u;
#for m in TALL
    let n{m} = min(row0 + {m}u, last_n);
    let x{m} = (n{m} * p.ld + p.col) / 4u;
#for j in WIDE by 4
    var c{m}_{j} = vec4<f32>();
#end
#end
    // Four rows of W by WIDE columns, as vectors: the b-th is row b % 4, columns from col0 + b / 4 · 4.
#for s in WIDE by LANES
    let w{s} = min(col0 + ({s}u + part) / 4u * 4u, last_i);
    let k{s} = ({s}u + part) % 4u;
#end
    for (var k = 0u; k < p.o; k += 4u) {
#for s in WIDE by LANES
        let q{s} = load_w(k + k{s}, w{s}, p.i, p.w_off);
#if SINGLE
        let b{s} = q{s};
#end
#if SHARED
#for l in LANES
        let b{s+l} = subgroupBroadcast(q{s}, {l}u);
#end
#end
#end
#for m in TALL
        let a{m} = x[x{m} + k / 4u];
#for j in WIDE by 4
        c{m}_{j} += a{m}.x * b{j} + a{m}.y * b{j+1} + a{m}.z * b{j+2} + a{m}.w * b{j+3};
#end
#end
    }
    let first = col0;
#include low_rank_term
    var c = array<vec4<f32>, TALL * WIDE / 4>(
#for m in TALL
#for j in WIDE by 4
        c{m}_{j},
#end
#end
    );
    let flags = p.flags;
    let rows = min(TALL, p.n - min(row0, p.n));
    let outs = min(WIDE, p.i - min(col0, p.i));
    for (var m = 0u; m < rows; m += 1u) {
        for (var j = 0u; j < outs; j += 4u) {
            let at = ((row0 + m) * p.i + col0 + j) / 4u;
            var v = c[(m * WIDE + j) / 4u];
            if ((flags & 4u) != 0u) { v += dx[at]; }
            dx[at] = v;
        }
    }
}
