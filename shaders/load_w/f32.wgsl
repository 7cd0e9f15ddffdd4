// Four weights of a row of `cols` values, stored as f32, from column `col` (a multiple of 4). `offset` in words.
@group(0) @binding(1) var<storage, read> w: array<vec4<f32>>;
fn load_w(row: u32, col: u32, cols: u32, offset: u32) -> vec4<f32> {
    return w[(offset + row * cols + col) / 4u];
}
