pub mod clock;
pub mod cpu;
pub mod error;
pub mod format;
pub mod gpu;
pub mod num;
pub mod ops;
pub mod plan;
