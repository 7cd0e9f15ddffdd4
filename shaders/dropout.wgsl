// Dropout from a counter: the mask is a hash of (seed of the micro-batch, site, index), stored nowhere.
//
// forward:   y[i] = x[i]·mask(i)/(1 − p)
// backward:  dx[i] += dy[i]·mask(i)/(1 − p)
//
// all of `len` floats
// Dispatch: x over floats, 64 a workgroup, in strides. y is overwritten, dx is added to.

struct Params { len: u32, site: u32, p: f32, pad: u32 }
@group(1) @binding(0) var<uniform> p: Params;
@group(0) @binding(0) var<storage, read> control: array<u32>;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

// pcg-rxs-m-xs (O'Neill 2014)
fn hash(x: u32) -> u32 {
    let s = x * 747796405u + 2891336453u;
    let w = ((s >> ((s >> 28u) + 4u)) ^ s) * 277803737u;
    return (w >> 22u) ^ w;
}

fn factor(i: u32) -> f32 {
    let uniform = f32(hash(hash(control[SEED] ^ (p.site * 0x9e3779b9u)) ^ i) >> 8u) / 16777216.0;
    return select(1.0 / (1.0 - p.p), 0.0, uniform < p.p);
}

@compute @workgroup_size(64)
fn forward(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < p.len; i += groups.x * 64u) { y[i] = x[i] * factor(i); }
}

@compute @workgroup_size(64)
fn backward(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < p.len; i += groups.x * 64u) { y[i] += x[i] * factor(i); }
}
