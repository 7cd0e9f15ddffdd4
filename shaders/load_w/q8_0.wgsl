// Four weights of a row of `cols` values in Q8_0 blocks: [d, 8 words of i8].
@group(0) @binding(1) var<storage, read> w: array<u32>;
fn load_w(row: u32, col: u32, cols: u32, offset: u32) -> vec4<f32> {
    let block = offset + (row * cols + col) / 32u * 9u;
    let q = bitcast<i32>(w[block + 1u + (col & 31u) / 4u]);
    let v = vec4<i32>((q << 24u) >> 24u, (q << 16u) >> 24u, (q << 8u) >> 24u, q >> 24u);
    return unpack2x16float(w[block]).x * vec4<f32>(v);
}
