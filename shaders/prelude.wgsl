// Prepended to every shader: the words of the control buffer (src/ops/control.rs) and small helpers.
const ROWS: u32 = 0u;
const INV_TOKENS: u32 = 1u;
const FIRST: u32 = 2u;
const RING: u32 = 3u;
const LR: u32 = 4u;
const BIAS1: u32 = 5u;
const BIAS2: u32 = 6u;
const SEED: u32 = 7u;
const REPORT: u32 = 4u;
const NONE: u32 = 0xffffffffu;

// Implementations may assume that NaN and infinity do not occur, so the exponent's bits are asked.
fn finite(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7f800000u) != 0x7f800000u;
}

// cap·tanh(x/cap), or x where cap is 0. tanh itself may be NaN where its exponentials overflow.
fn soft_cap(x: f32, cap: f32) -> f32 {
    if (cap == 0.0) { return x; }
    return cap * tanh(clamp(x / cap, -15.0, 15.0));
}

// The slope of soft_cap where its value is y.
fn soft_cap_slope(y: f32, cap: f32) -> f32 {
    if (cap == 0.0) { return 1.0; }
    return 1.0 - y / cap * (y / cap);
}
