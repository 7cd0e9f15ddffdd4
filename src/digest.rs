//! SHA-256: what tells whether two models, data sets or files are the same.

use sha2::{Digest as _, Sha256};

#[derive(Default)]
pub struct Digest(Sha256);

impl Digest {
    pub fn add(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// In hexadecimal, as `sha256sum` prints it.
    pub fn hex(self) -> String {
        self.0.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

pub fn sha256(bytes: &[u8]) -> String {
    let mut digest = Digest::default();
    digest.add(bytes);
    digest.hex()
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_is_sha256() {
        let want = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(super::sha256(b"abc"), want);
    }
}
