// Four weights of a row of `cols` values in Q4_1 blocks: [d | m << 16, 4 words of nibbles]; low nibbles are values 0..16, high 16..32.
@group(0) @binding(1) var<storage, read> w: array<u32>;
fn load_w(row: u32, col: u32, cols: u32, offset: u32) -> vec4<f32> {
    let block = offset + (row * cols + col) / 32u * 5u;
    let q = w[block + 1u + (col & 15u) / 4u] >> ((col & 16u) / 4u);
    let v = vec4<f32>((vec4<u32>(q) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(15u));
    let d = unpack2x16float(w[block]);
    return d.x * v + d.y;
}
