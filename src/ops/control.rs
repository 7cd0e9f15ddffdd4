//! The words that change from step to step, rewritten by the host before a run: shared by every kernel that needs them.
//!
//! `shaders/control.wgsl` (prepended to those kernels) reads the same layout; a test compares the two.

/// Indices into the control buffer. Values marked f are the bits of an f32.
pub const ROWS: usize = 0; // supervised rows of this micro-batch
pub const INV_TOKENS: usize = 1; // f: 1 / supervised tokens of the whole accumulation window
pub const FIRST: usize = 2; // 1 in the first micro-batch of a window: sums start anew
pub const RING: usize = 3; // slot of the report ring
pub const LR: usize = 4; // f: learning rate
pub const BIAS1: usize = 5; // f: 1 − β1^t
pub const BIAS2: usize = 6; // f: 1 − β2^t
pub const SEED: usize = 7; // dropout: hash of seed, step and micro-batch
pub const WORDS: usize = 8;

/// Floats in a slot of the report ring: loss sum, correct tokens, gradient norm, applied (1 or 0).
pub const REPORT: usize = 4;
/// Slots of the report ring.
pub const RING_SLOTS: usize = 64;

/// What the host writes before a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Control {
    pub rows: u32,
    pub inv_tokens: f32,
    pub first: bool,
    pub ring: u32,
    pub lr: f32,
    pub bias1: f32,
    pub bias2: f32,
    pub seed: u32,
}

impl Control {
    pub fn words(&self) -> [u32; WORDS] {
        let mut w = [0; WORDS];
        w[ROWS] = self.rows;
        w[INV_TOKENS] = self.inv_tokens.to_bits();
        w[FIRST] = self.first as u32;
        w[RING] = self.ring;
        w[LR] = self.lr.to_bits();
        w[BIAS1] = self.bias1.to_bits();
        w[BIAS2] = self.bias2.to_bits();
        w[SEED] = self.seed;
        w
    }
}
