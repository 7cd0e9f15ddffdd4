// The squared norm of each row of a packed matrix.
//
// forward:  out[row0 + o] = Σ_i W[o,i]²
//
// W:[rows, I] (a shard that starts at row0)  out: floats
// Dispatch: x over rows, 64 a workgroup. load_w is prepended.

struct Params { rows: u32, i: u32, row0: u32, w_off: u32 }
@group(1) @binding(0) var<uniform> p: Params;
@group(0) @binding(0) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(64)
fn forward(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x >= p.rows) { return; }
    var s = 0.0;
    for (var i = 0u; i < p.i; i += 4u) {
        let w = load_w(id.x, i, p.i, p.w_off);
        s += dot(w, w);
    }
    out[p.row0 + id.x] = s;
}
