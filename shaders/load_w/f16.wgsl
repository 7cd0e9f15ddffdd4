// Four weights of a row of `cols` values, stored as f16 pairs; needs no shader-f16.
@group(0) @binding(1) var<storage, read> w: array<vec2<u32>>;
fn load_w(row: u32, col: u32, cols: u32, offset: u32) -> vec4<f32> {
    let v = w[(2u * offset + row * cols + col) / 4u];
    return vec4<f32>(unpack2x16float(v.x), unpack2x16float(v.y));
}
