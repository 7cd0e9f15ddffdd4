// The gain m/‖W + s·B·A‖ of each row: a magnitude learned apart from the direction, without forming that matrix.
//
// forward:  n²[o] = squares[o] + 2s·Σ_r Bᵀ[r,o]·aw[r,o] + s²·Σ_r Σ_q Bᵀ[r,o]·Bᵀ[q,o]·aa[r,q]
//           inv[o] = 1/n[o],  gain[o] = m[o]/n[o]
// The norm counts as a constant in backward (Liu et al. 2024, section 4.3), so dm[o] = inv[o]·dgain[o] is all there is.
//
// params: floats with m at m_off and Bᵀ:[R,O] at b_off  aw = A·Wᵀ:[R,O]  aa = A·Aᵀ:[R,R]
// squares, inv, gain:[O], squares = Σ_i W[o,i]²
// Dispatch: x over O, 64 a workgroup.

struct Params { o: u32, r: u32, m_off: u32, b_off: u32, scale: f32, pad0: u32, pad1: u32, pad2: u32 }
@group(1) @binding(0) var<uniform> p: Params;
@group(0) @binding(0) var<storage, read> params: array<f32>;
@group(0) @binding(1) var<storage, read> aw: array<f32>;
@group(0) @binding(2) var<storage, read> aa: array<f32>;
@group(0) @binding(3) var<storage, read> squares: array<f32>;
@group(0) @binding(4) var<storage, read_write> inv: array<f32>;
@group(0) @binding(5) var<storage, read_write> gain: array<f32>;

@compute @workgroup_size(64)
fn forward(@builtin(global_invocation_id) id: vec3<u32>) {
    let o = id.x;
    if (o >= p.o) { return; }
    var n2 = squares[o];
    for (var r = 0u; r < p.r; r += 1u) {
        var s = 2.0 * aw[r * p.o + o];
        for (var q = 0u; q < p.r; q += 1u) { s += p.scale * params[p.b_off + q * p.o + o] * aa[r * p.r + q]; }
        n2 += p.scale * params[p.b_off + r * p.o + o] * s;
    }
    let n = sqrt(n2);
    inv[o] = 1.0 / n;
    gain[o] = params[p.m_off + o] / n;
}
