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

/// A digest of pieces that are given away, computed beside what goes on: it takes as long as reading and packing them.
pub use beside::Beside;

#[cfg(not(target_arch = "wasm32"))]
mod beside {
    use super::Digest;
    use std::sync::mpsc::{SyncSender, sync_channel};
    use std::thread::{JoinHandle, spawn};

    type Piece = Box<dyn FnOnce(&mut Digest) + Send>;

    /// On a thread of its own, which ends when this is dropped.
    pub struct Beside {
        pieces: SyncSender<Piece>,
        thread: JoinHandle<Digest>,
    }

    impl Beside {
        pub fn start() -> Beside {
            // Whoever is a piece ahead waits: memory holds a few of them.
            let (pieces, added) = sync_channel::<Piece>(1);
            let thread = spawn(move || {
                let mut digest = Digest::default();
                added.iter().for_each(|piece| piece(&mut digest));
                digest
            });
            Beside { pieces, thread }
        }

        pub fn add<T: bytemuck::Pod + Send>(&mut self, piece: Vec<T>) {
            let piece: Piece = Box::new(move |digest| digest.add(bytemuck::cast_slice(&piece)));
            self.pieces.send(piece).expect("it ends after its pieces");
        }

        pub fn finish(self) -> Digest {
            drop(self.pieces);
            self.thread.join().expect("hashing does not panic")
        }
    }
}

#[cfg(target_arch = "wasm32")]
mod beside {
    use super::Digest;

    /// One thread is all there is: at once.
    pub struct Beside(Digest);

    impl Beside {
        pub fn start() -> Beside {
            Beside(Digest::default())
        }

        pub fn add<T: bytemuck::Pod>(&mut self, piece: Vec<T>) {
            self.0.add(bytemuck::cast_slice(&piece));
        }

        pub fn finish(self) -> Digest {
            self.0
        }
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

    #[test]
    fn pieces_beside_are_the_whole() {
        let pieces: Vec<Vec<u32>> = (0..50).map(|k| (0..k * 37).collect()).collect();
        let (mut whole, mut beside) = (super::Digest::default(), super::Beside::start());
        for piece in pieces {
            whole.add(bytemuck::cast_slice(&piece));
            beside.add(piece);
        }
        assert_eq!(beside.finish().hex(), whole.hex());
    }
}
