use crate::common::tolerance::{EXACT, FEW};
use crate::harness::{Suite, random};
use luthier::format::{WeightFormat, pack};
use luthier::ops::embedding;
use luthier::ops::matmul::{Matrix, Shard};

fn ids(n: usize, vocab: usize) -> Vec<u32> {
    (0..n).map(|i| (i * 37 % vocab) as u32).collect()
}

/// The matrix in two shards, so that every id lies in one and is left alone by the other. `old`: what x is added to.
fn push(
    s: &mut Suite,
    format: WeightFormat,
    n: usize,
    (vocab, c): (usize, usize),
    values: &[f64],
    scale: f32,
    old: Option<&[f64]>,
) {
    let floats: Vec<f32> = values.iter().map(|x| *x as f32).collect();
    let cut = vocab / 3;
    let halves = [(0, cut), (cut, vocab - cut)];
    let shards = halves.into_iter().filter(|(_, rows)| *rows > 0).map(|(row0, rows)| {
        let buf = s.words("W", &pack(format, &floats[row0 * c..(row0 + rows) * c]));
        Shard { buf, row0, rows, offset: 0 }
    });
    let w = Matrix { format, rows: vocab, cols: c, shards: shards.collect() };
    let (ids, x) = (s.words("ids", &ids(n, vocab)), s.onto("x", n * c, old));
    embedding::forward(&mut s.plan, "", n, ids, &w, scale, old.is_some(), x);
}

#[test]
fn twin_looks_rows_up() {
    let (n, vocab, c) = (9, 10, 4);
    let table = random(vocab * c, 1);
    let mut s = Suite::new(EXACT);
    push(s.case("lookup"), WeightFormat::F32, n, (vocab, c), &table, 1.0, None);
    let want: Vec<f64> = ids(n, vocab).iter().flat_map(|id| table[*id as usize * c..][..c].to_vec()).collect();
    assert_eq!(s.reference()[0], want);
    let old = random(n * c, 2);
    let mut s = Suite::new(EXACT);
    push(s.case("scaled, added"), WeightFormat::F32, n, (vocab, c), &table, 2.5, Some(&old));
    let want: Vec<f64> = want.iter().zip(&old).map(|(want, old)| old + 2.5 * want).collect();
    assert_eq!(s.reference()[0], want);
}

#[test]
fn executors_agree() {
    let (mut s, mut sums) = (Suite::new(EXACT), Suite::new(FEW));
    for format in WeightFormat::ALL {
        let granule = format.granule();
        for (n, vocab, c) in [(1, 1, granule), (7, 50, 3 * granule), (129, 200, 576)] {
            let (values, old, size) = (random(vocab * c, 2), random(n * c, 3), (vocab, c));
            let label = format!("{} {n} of {vocab}x{c}", format.name());
            push(s.case(&label), format, n, size, &values, 1.0, None);
            push(sums.case(&label), format, n, size, &values, 1.7, Some(&old));
        }
    }
    s.check();
    sums.check();
}
