// Four weights of a row of `cols` values, stored as bf16 pairs: the upper half of an f32 each.
@group(0) @binding(1) var<storage, read> w: array<vec2<u32>>;
fn load_w(row: u32, col: u32, cols: u32, offset: u32) -> vec4<f32> {
    let v = w[(2u * offset + row * cols + col) / 4u];
    return bitcast<vec4<f32>>(vec4<u32>(v.x << 16u, v.x & 0xffff0000u, v.y << 16u, v.y & 0xffff0000u));
}
