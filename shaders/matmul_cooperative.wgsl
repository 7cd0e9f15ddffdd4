// Products with a frozen matrix W:[O,I] on matrix units: DOWN × ACROSS subgroups a workgroup, TALL × WIDE fragments of
// FRAG × FRAG outputs a subgroup, 32 of the inner index at a time.
// Dispatch: x over tiles of rows, y over tiles of outputs. load_w is prepended.
//
// Both operands are staged as f16 in workgroup memory, sums are f32: see matmul_tiled.wgsl on HALF. What the next round
// needs is fetched into registers before this round is multiplied. The staged vectors an invocation are whole:
// X_LOADS = rows · 8 / THREADS, W_LOADS = outputs · 8 / THREADS. What lies beyond an edge counts as 0, and is not stored.

#include matmul

alias Left = coop_mat{FRAG}x{FRAG}<f16, A>;
alias Right = coop_mat{FRAG}x{FRAG}<f16, B>;
alias Sums = coop_mat{FRAG}x{FRAG}<f32, C>;
alias Staged = vec4<f16>;

const K: u32 = 32u;
const THREADS = LANES * DOWN * ACROSS;
const FRAG_4 = FRAG / 4u;
const TILE_N = DOWN * TALL * FRAG;
const TILE_O = ACROSS * WIDE * FRAG;
// Vectors from row to row: two more than there are, so that the rows of a fragment lie in different banks.
const X_LD = K / 4u + 2u;
const W_LD = TILE_O / 4u + 2u;
const OUT_LD = WIDE * FRAG_4;

var<workgroup> xs: array<Staged, TILE_N * X_LD>;
var<workgroup> ws: array<Staged, TILE_O * X_LD>; // forward [output][K]
var<workgroup> vs: array<Staged, K * W_LD>; // backward [K][output]
var<workgroup> outs: array<vec4<f32>, DOWN * ACROSS * FRAG * OUT_LD>; // a row of fragments a subgroup

// Four of row n of x, from k on: its rows are `ld` floats, of which `end` count from `first` on.
fn fetch_x(n: u32, ld: u32, first: u32, k: u32, end: u32) -> Staged {
    if (n >= p.n || k >= end) { return Staged(); }
    return Staged(p.range * x[(n * ld + first + k) / 4u]);
}

fn fetch_w(o: u32, i: u32) -> Staged {
    if (o >= p.o || i >= p.i) { return Staged(); }
    return Staged(load_w(o, i, p.i, p.w_off));
}

// The low-rank terms of row n at columns c to c + 3.
fn low(n: u32, c: u32) -> vec4<f32> {
    var sum = vec4<f32>();
    for (var k = 0u; k < 3u; k += 1u) {
        let f = p.factors[k];
        if (c < f.col || c >= f.col + f.width) { continue; }
        let at = f.off + c - f.col;
        var term = vec4<f32>();
        for (var r = 0u; r < f.rank; r += 1u) {
            term += t[n * p.t_ld + f.t + r] * flat[(at + r * f.width) / 4u];
        }
        sum += f.scale * term;
    }
    return sum;
}

fn finish_forward(n: u32, o0: u32, product: vec4<f32>) {
    if (n >= p.n || o0 >= p.o) { return; }
    let v = p.scale * product + low(n, p.col + o0);
    for (var k = 0u; k < min(4u, p.o - o0); k += 1u) {
        let at = n * p.ld + p.col + o0 + k;
        var out = v[k];
        if ((p.flags & 1u) != 0u) { out += bias[p.bias_off + o0 + k]; }
        if ((p.flags & 2u) != 0u) { out += res[at]; }
        if ((p.flags & 4u) != 0u) { out += y[at]; }
        y[at] = out;
    }
}

fn finish_backward(n: u32, i0: u32, product: vec4<f32>) {
    if (n >= p.n || i0 >= p.i) { return; }
    let at = (n * p.i + i0) / 4u;
    var v = product / p.range + low(n, i0);
    if ((p.flags & 4u) != 0u) { v += dx[at]; }
    dx[at] = v;
}

@compute @workgroup_size(THREADS)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
#include fragments
#for s in X_LOADS
    var vx{s} = fetch_x(row0 + rx{s}, p.i, 0u, sq * 4u, p.i);
#end
#for s in W_LOADS
    let rw{s} = lane / 8u + {s}u * (THREADS / 8u);
    var vw{s} = fetch_w(col0 + rw{s}, sq * 4u);
#end
    // k: where the next round begins.
    for (var k = K; k < p.i + K; k += K) {
        workgroupBarrier();
#for s in X_LOADS
        xs[rx{s} * X_LD + sq] = vx{s};
        vx{s} = fetch_x(row0 + rx{s}, p.i, 0u, k + sq * 4u, p.i);
#end
#for s in W_LOADS
        ws[rw{s} * X_LD + sq] = vw{s};
        vw{s} = fetch_w(col0 + rw{s}, k + sq * 4u);
#end
        workgroupBarrier();
#for q in STEPS
#for j in WIDE
        let b{q}_{j} = coopLoad<Right>(&ws[(across + {j}u * FRAG) * X_LD + {q}u * FRAG_4], X_LD);
#end
#end
#include fragments_multiply
    }
#for m in TALL
#for j in WIDE
    coopStoreT(c{m}_{j}, &outs[first + {j}u * FRAG_4], OUT_LD);
#end
    workgroupBarrier();
    for (var v = lane % LANES; v < FRAG * OUT_LD; v += LANES) {
        finish_forward(row0 + down + {m}u * FRAG + v / OUT_LD, col0 + across + v % OUT_LD * 4u, outs[first + v]);
    }
    workgroupBarrier();
#end
}

@compute @workgroup_size(THREADS)
fn backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
#include fragments
#for s in X_LOADS
    var vx{s} = fetch_x(row0 + rx{s}, p.ld, p.col, sq * 4u, p.o);
#end
    // W lies as it is needed: vector lane of [K][TILE_O / 4], and every THREADS-th from there.
#for s in W_LOADS
    let rw{s} = ({s}u * THREADS + lane) / (TILE_O / 4u);
    let qw{s} = ({s}u * THREADS + lane) % (TILE_O / 4u);
    var vw{s} = fetch_w(rw{s}, col0 + 4u * qw{s});
#end
    // k: where the next round begins.
    for (var k = K; k < p.o + K; k += K) {
        workgroupBarrier();
#for s in X_LOADS
        xs[rx{s} * X_LD + sq] = vx{s};
        vx{s} = fetch_x(row0 + rx{s}, p.ld, p.col, k + sq * 4u, p.o);
#end
#for s in W_LOADS
        vs[rw{s} * W_LD + qw{s}] = vw{s};
        vw{s} = fetch_w(k + rw{s}, col0 + 4u * qw{s});
#end
        workgroupBarrier();
#for q in STEPS
#for j in WIDE
        let b{q}_{j} = coopLoadT<Right>(&vs[{q}u * FRAG * W_LD + across / 4u + {j}u * FRAG_4], W_LD);
#end
#end
#include fragments_multiply
    }
#for m in TALL
#for j in WIDE
    coopStoreT(c{m}_{j}, &outs[first + {j}u * FRAG_4], OUT_LD);
#end
    workgroupBarrier();
    for (var v = lane % LANES; v < FRAG * OUT_LD; v += LANES) {
        finish_backward(row0 + down + {m}u * FRAG + v / OUT_LD, col0 + across + v % OUT_LD * 4u, outs[first + v]);
    }
    workgroupBarrier();
#end
}
