// Products with a frozen matrix W:[O,I], staged through workgroup memory: TY·TALL × TX·WIDE outputs a workgroup of
// TX × TY invocations, TALL × WIDE an invocation in registers, 16 of the inner index at a time.
// Dispatch: x over tiles of rows, y over tiles of outputs. load_w is prepended.
//
// TX and TY are multiples of 8, TALL, WIDE and the staged vectors an invocation (TALL·4 / TX, WIDE·4 / TY) whole.
// Rows and columns beyond the edge repeat the last one; their results are not stored. Beyond the end of the inner index
// x counts as 0 and W repeats its last, so that no load needs a branch.
//
// HALF stages both operands as f16, which keeps 11 bits of each and no more than 65504, in half the workgroup memory; sums
// and whatever is added to them stay f32. Gradients are staged times p.range: as they come they would lose bits below 2⁻¹⁴.

#include matmul

const K: u32 = 16u;
const THREADS: u32 = TX * TY;
const STRIDE: u32 = TX; // from four outputs to the next of an invocation, in fours
const W4: u32 = WIDE * TX / 4u;
#if HALF
alias Staged = vec4<f16>;
#end
#if WHOLE
alias Staged = vec4<f32>;
#end
var<workgroup> xs: array<Staged, TALL * TY * 4u>; // [row][K / 4], vectors along K
var<workgroup> ws: array<Staged, WIDE * TX * 4u>; // forward [output][K / 4], along K; backward [K][W4], along the outputs

// Where vector q of a row along K lies: eight neighbours that read the same q, one row each, meet in no bank.
fn place(row: u32, q: u32) -> u32 { return row * 4u + (q ^ ((row / 2u) & 3u)); }

@compute @workgroup_size(TX * TY)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row0 = group.x * (TALL * TY);
    let col0 = group.y * (WIDE * TX);
    let ty = lane / TX;
    let tx = lane % TX;
    // What this invocation stages: of row lane / 4, and every THREADS / 4-th from there, vector lane % 4.
    let srow = lane / 4u;
    let sq = lane & 3u;
#for s in X_LOADS
    let sx{s} = min(row0 + srow + {s}u * (THREADS / 4u), p.n - 1u) * p.i;
#end
#for s in W_LOADS
    let sw{s} = min(col0 + srow + {s}u * (THREADS / 4u), p.o - 1u);
#end
#for m in TALL
#for j in WIDE by 4
    var c{m}_{j} = vec4<f32>();
#end
#end
    for (var k = 0u; k < p.i; k += K) {
        let at = min(k + sq * 4u, p.i - 4u);
        let inside = k + sq * 4u < p.i;
#for s in X_LOADS
        xs[place(srow + {s}u * (THREADS / 4u), sq)] = Staged(select(vec4<f32>(), x[(sx{s} + at) / 4u], inside));
#end
#for s in W_LOADS
        ws[place(srow + {s}u * (THREADS / 4u), sq)] = Staged(load_w(sw{s}, at, p.i, p.w_off));
#end
        workgroupBarrier();
        for (var q = 0u; q < K / 4u; q += 1u) {
            let px = place(ty, q);
            let pw = place(tx, q);
#for j in WIDE
            let b{j} = vec4<f32>(ws[pw + {j}u * TX * 4u]);
#end
#for j in WIDE by 4
            let x{j} = vec4<f32>(b{j}.x, b{j+1}.x, b{j+2}.x, b{j+3}.x);
            let y{j} = vec4<f32>(b{j}.y, b{j+1}.y, b{j+2}.y, b{j+3}.y);
            let z{j} = vec4<f32>(b{j}.z, b{j+1}.z, b{j+2}.z, b{j+3}.z);
            let w{j} = vec4<f32>(b{j}.w, b{j+1}.w, b{j+2}.w, b{j+3}.w);
#end
#for m in TALL
            let a{m} = vec4<f32>(xs[px + {m}u * TY * 4u]);
#for j in WIDE by 4
            c{m}_{j} = c{m}_{j} + a{m}.x * x{j} + a{m}.y * y{j} + a{m}.z * z{j} + a{m}.w * w{j};
#end
#end
        }
        workgroupBarrier();
    }
#for m in TALL
    let n{m} = min(row0 + ty + {m}u * TY, p.n - 1u);
#for j in WIDE by 4
    c{m}_{j} *= p.scale;
#end
#end
    // The low-rank terms, all outputs of an invocation at a time.
    for (var k = 0u; k < 3u; k += 1u) {
        let f = p.factors[k];
        let first = p.col + col0 + tx;
#for j in WIDE
        let in{j} = first + {j}u * TX >= f.col && first + {j}u * TX < f.col + f.width;
        let scale{j} = select(0.0, f.scale, in{j});
        let at{j} = f.off + select(0u, first + {j}u * TX - f.col, in{j});
#end
        for (var r = 0u; r < f.rank; r += 1u) {
#for j in WIDE
            let f{j} = scale{j} * flat[(at{j} + r * f.width) / 4u][at{j} & 3u];
#end
#for m in TALL
            let t{m} = t[n{m} * p.t_ld + f.t + r];
#for j in WIDE by 4
            c{m}_{j} += t{m} * vec4<f32>(f{j}, f{j+1}, f{j+2}, f{j+3});
#end
#end
        }
    }
    var c = array<vec4<f32>, TALL * WIDE / 4>(
#for m in TALL
#for j in WIDE by 4
        c{m}_{j},
#end
#end
    );
    for (var m = 0u; m < TALL; m += 1u) {
        let n = row0 + ty + m * TY;
        if (n >= p.n) { break; }
        for (var j = 0u; j < WIDE; j += 1u) {
            if (col0 + tx + j * TX >= p.o) { break; }
            let o = p.col + col0 + tx + j * TX;
            var v = c[(m * WIDE + j) / 4u][j & 3u];
            if ((p.flags & 1u) != 0u) { v += bias[p.bias_off + o - p.col]; }
            if ((p.flags & 2u) != 0u) { v += res[n * p.ld + o]; }
            if ((p.flags & 4u) != 0u) { v += y[n * p.ld + o]; }
            y[n * p.ld + o] = v;
        }
    }
}

@compute @workgroup_size(TX * TY)
fn backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row0 = group.x * (TALL * TY);
    let col0 = group.y * (WIDE * TX);
    let ty = lane / TX;
    let tx = lane % TX;
    let srow = lane / 4u;
    let sq = lane & 3u;
#for s in X_LOADS
    let sx{s} = min(row0 + srow + {s}u * (THREADS / 4u), p.n - 1u) * p.ld + p.col;
#end
    // W lies as it is needed: vector lane of [K][W4], and every THREADS-th from there.
#for s in W_LOADS
    let sk{s} = ({s}u * THREADS + lane) / W4;
    let sw{s} = min(col0 + 4u * (({s}u * THREADS + lane) % W4), p.i - 4u);
#end
#for m in TALL
#for j in WIDE by 4
    var c{m}_{j} = vec4<f32>();
#end
#end
    for (var k = 0u; k < p.o; k += K) {
        let at = min(k + sq * 4u, p.o - 4u);
        let inside = k + sq * 4u < p.o;
#for s in X_LOADS
#if HALF
        xs[place(srow + {s}u * (THREADS / 4u), sq)] = Staged(select(vec4<f32>(), p.range * x[(sx{s} + at) / 4u], inside));
#end
#if WHOLE
        xs[place(srow + {s}u * (THREADS / 4u), sq)] = Staged(select(vec4<f32>(), x[(sx{s} + at) / 4u], inside));
#end
#end
#for s in W_LOADS
        ws[{s}u * THREADS + lane] = Staged(load_w(min(k + sk{s}, p.o - 1u), sw{s}, p.i, p.w_off));
#end
        workgroupBarrier();
        for (var q = 0u; q < K / 4u; q += 1u) {
            let px = place(ty, q);
            let pw = q * 4u * W4 + tx;
#for j in WIDE by 4
            let x{j} = vec4<f32>(ws[pw + {j}u / 4u * TX]);
            let y{j} = vec4<f32>(ws[pw + W4 + {j}u / 4u * TX]);
            let z{j} = vec4<f32>(ws[pw + 2u * W4 + {j}u / 4u * TX]);
            let w{j} = vec4<f32>(ws[pw + 3u * W4 + {j}u / 4u * TX]);
#end
#for m in TALL
            let a{m} = vec4<f32>(xs[px + {m}u * TY * 4u]);
#for j in WIDE by 4
            c{m}_{j} = c{m}_{j} + a{m}.x * x{j} + a{m}.y * y{j} + a{m}.z * z{j} + a{m}.w * w{j};
#end
#end
        }
        workgroupBarrier();
    }
#for m in TALL
    let n{m} = min(row0 + ty + {m}u * TY, p.n - 1u);
#if HALF
#for j in WIDE by 4
    c{m}_{j} /= p.range;
#end
#end
#end
    let first = col0 + 4u * tx;
#include low_rank_term
    var c = array<vec4<f32>, TALL * WIDE / 4>(
#for m in TALL
#for j in WIDE by 4
        c{m}_{j},
#end
#end
    );
    for (var m = 0u; m < TALL; m += 1u) {
        let n = row0 + ty + m * TY;
        if (n >= p.n) { break; }
        for (var j = 0u; j < WIDE; j += 4u) {
            let i0 = col0 + j * TX + 4u * tx;
            if (i0 >= p.i) { break; }
            var v = c[(m * WIDE + j) / 4u];
            let at = (n * p.i + i0) / 4u;
            if ((p.flags & 4u) != 0u) { v += dx[at]; }
            dx[at] = v;
        }
    }
}
