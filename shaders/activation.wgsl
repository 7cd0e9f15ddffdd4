// The MLP's activation f(x) = x·σ(a·(x + b·x³)): SiLU with a = 1, b = 0; GELU's tanh form with a = 2√(2/π), b = 0.044715.
//
// forward:   y = f(g)·u, or f(g) where nothing is gated
// backward:  dg = dy·u·f'(g),  du = dy·f(g), or dg = dy·f'(g) where nothing is gated
// with s = σ(…):   f'(x) = s + x·s·(1 − s)·a·(1 + 3b·x²)
// forward_packing also leaves g and u as bf16, rounded to the nearest, ties to even; backward_packed reads these instead.
//
// x, dx:[N, g | u] of F columns each, or [N, g]  y, dy:[N,F], F a multiple of 4  packed: x as pairs of bf16 a word
// Dispatch: x over groups of 4 floats of y, 64 a workgroup, in strides.
// y and packed are overwritten; backward overwrites g with dg, u with du and dy with y, which the gradients that follow read.

struct Params { n: u32, f: u32, gated: u32, a: f32, b: f32 }
@group(1) @binding(0) var<uniform> p: Params;
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> packing: array<vec2<u32>>;
@group(0) @binding(0) var<storage, read_write> dy: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> dx: array<vec4<f32>>; // x before, unless that is packed
@group(0) @binding(2) var<storage, read> packed: array<vec2<u32>>;

fn sigmoid(x: vec4<f32>) -> vec4<f32> {
    return 1.0 / (1.0 + exp(-p.a * (x + p.b * x * x * x)));
}

fn slope(x: vec4<f32>, s: vec4<f32>) -> vec4<f32> {
    return s + x * s * (1.0 - s) * p.a * (1.0 + 3.0 * p.b * x * x);
}

// Where the four columns of g lie that belong to those of y at i; those of u lie f4 further.
fn place(i: u32, f4: u32) -> u32 {
    return i / f4 * (f4 << p.gated) + i % f4;
}

fn activated(at: u32, f4: u32) -> vec4<f32> {
    let v = x[at] * sigmoid(x[at]);
    if (p.gated == 1u) { return v * x[at + f4]; }
    return v;
}

// Leaves dx and y of four columns; u is 1 where nothing is gated.
fn gradient(i: u32, at: u32, f4: u32, g: vec4<f32>, u: vec4<f32>) {
    let s = sigmoid(g);
    let v = g * s;
    let d = dy[i];
    dx[at] = d * u * slope(g, s);
    if (p.gated == 1u) { dx[at + f4] = d * v; }
    dy[i] = v * u;
}

// Bits decide what is NaN: implementations may assume that there is none.
fn pack(x: vec4<f32>) -> vec2<u32> {
    let bits = bitcast<vec4<u32>>(x);
    let nan = (bits & vec4(0x7fffffffu)) > vec4(0x7f800000u);
    let rounded = bits + 0x7fffu + ((bits >> vec4(16u)) & vec4(1u));
    let upper = select(rounded, bits | vec4(0x400000u), nan) >> vec4(16u);
    return upper.xz | (upper.yw << vec2(16u));
}

fn unpack(w: vec2<u32>) -> vec4<f32> {
    return bitcast<vec4<f32>>(vec4(w.x << 16u, w.x & 0xffff0000u, w.y << 16u, w.y & 0xffff0000u));
}

@compute @workgroup_size(64)
fn forward(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let f4 = p.f / 4u;
    for (var i = id.x; i < p.n * f4; i += groups.x * 64u) {
        y[i] = activated(place(i, f4), f4);
    }
}

@compute @workgroup_size(64)
fn forward_packing(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let f4 = p.f / 4u;
    for (var i = id.x; i < p.n * f4; i += groups.x * 64u) {
        let at = place(i, f4);
        y[i] = activated(at, f4);
        packing[at] = pack(x[at]);
        if (p.gated == 1u) { packing[at + f4] = pack(x[at + f4]); }
    }
}

@compute @workgroup_size(64)
fn backward(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let f4 = p.f / 4u;
    for (var i = id.x; i < p.n * f4; i += groups.x * 64u) {
        let at = place(i, f4);
        var u = vec4(1.0);
        if (p.gated == 1u) { u = dx[at + f4]; }
        gradient(i, at, f4, dx[at], u);
    }
}

@compute @workgroup_size(64)
fn backward_packed(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let f4 = p.f / 4u;
    for (var i = id.x; i < p.n * f4; i += groups.x * 64u) {
        let at = place(i, f4);
        var u = vec4(1.0);
        if (p.gated == 1u) { u = unpack(packed[at + f4]); }
        gradient(i, at, f4, unpack(packed[at]), u);
    }
}
