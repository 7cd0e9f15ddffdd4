// A factor F:[rank, width] of a low-rank term, at float `off` of the flat buffer; t: its first column of the narrow matrix,
// col: that of the wide one.
struct Factor { off: u32, rank: u32, t: u32, col: u32, width: u32, scale: f32, pad0: u32, pad1: u32 }
