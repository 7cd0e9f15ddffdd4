// Rotary position embedding in place, half-split pairs.
//
// forward:   (x[i], x[i + D/2]) ← (x[i]·cos − x[i+D/2]·sin, x[i+D/2]·cos + x[i]·sin), angle = table[first + position[n], i]
// backward:  the same with −sin
//
// x:[N, heads, D], rows of ld floats  positions:[N]  table:[·, D/2] of (cos, sin), position 0 in row `first`
// Dispatch: x over pairs, 64 a workgroup, in strides.

struct Params { n: u32, heads: u32, d: u32, first: u32, ld: u32 }
@group(1) @binding(0) var<uniform> p: Params;
@group(0) @binding(0) var<storage, read> positions: array<u32>;
@group(0) @binding(1) var<storage, read> table: array<vec2<f32>>;
@group(0) @binding(2) var<storage, read_write> x: array<f32>;

fn rotate(first: u32, stride: u32, sign: f32) {
    let half = p.d / 2u;
    let pairs = p.n * p.heads * half;
    for (var k = first; k < pairs; k += stride) {
        let row = k / (p.heads * half);
        let i = k % half;
        let at = row * p.ld + k / half % p.heads * p.d + i;
        let angle = table[(p.first + positions[row]) * half + i];
        let a = x[at];
        let b = x[at + half];
        x[at] = a * angle.x - sign * b * angle.y;
        x[at + half] = b * angle.x + sign * a * angle.y;
    }
}

@compute @workgroup_size(64)
fn forward(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    rotate(id.x, groups.x * 64u, 1.0);
}

@compute @workgroup_size(64)
fn backward(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    rotate(id.x, groups.x * 64u, -1.0);
}
